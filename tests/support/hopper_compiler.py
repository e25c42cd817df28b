"""Compiles what attention and products launch for a Hopper GPU, on a machine that has none.

    python -m tests.support.hopper_compiler

Prints JSON: for each launch its name, and the shared memory that it takes in bytes or the error. A process of its own,
because in the tests' process Triton interprets.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels import pdl
from kernels.kv_scales import FP8, KvScales
from kernels.linear import kernel as linear
from kernels.linear.choice import Tiles, choose
from kernels.paged_attention import AttentionPlan, DecodeWork, ProgramSizes, decode, hopper, prefill
from kernels.paged_attention.plan import program_sizes
from kernels.rope_attention import Rotation
from kernels.rope_attention import decode as rope_decode
from tests.support.attention_batch import chunks_of

_HOPPER = GPUTarget("cuda", 90, 32)
_OPTIONS = ("num_warps", "launch_pdl", "maxnreg")
_KV_HEADS = 2
_SIZES = program_sizes(4, 8)
_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
    FP8: "*fp8e4nv",
}


def type_of(value: Any) -> str:
    """Of a kernel's argument, as Triton writes it."""
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_TYPES[value.base.dtype][1:]}{value.block_shape},{value.layout!r}>"
    return "i32" if isinstance(value, int) else "fp32"


class Recorder:
    """Stands for a kernel, and compiles where it would launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.shared = 0

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._compile

    def _compile(self, *arguments: Any, **keywords: Any) -> None:
        options = {name: keywords.pop(name) for name in _OPTIONS if name in keywords}
        names = self.kernel.arg_names
        signature = dict.fromkeys(names, "constexpr")
        attributes = {}
        for index, value in enumerate(arguments):
            is_tensor = isinstance(value, torch.Tensor)
            signature[names[index]] = type_of(value)
            if is_tensor or (isinstance(value, int) and value % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
        constants = {(names.index(name),): value for name, value in keywords.items()}
        kind = GluonASTSource if self.kernel.is_gluon() else ASTSource
        source = kind(self.kernel, signature, constants, attributes)
        self.shared = triton.compile(source, target=_HOPPER, options=options).metadata.shared


def inputs(dtype: torch.dtype, head_dim: int, group: int, block_size: int, cache: torch.dtype) -> list[Any]:
    """q of 8 rows, and the caches."""
    q = torch.empty(8, _KV_HEADS * group, head_dim, dtype=dtype)
    return [q, *(torch.empty(64, _KV_HEADS, block_size, head_dim, dtype=cache) for _ in range(2))]


def scales_for(cache: torch.dtype) -> KvScales | None:
    return KvScales(torch.ones(_KV_HEADS), torch.ones(_KV_HEADS)) if cache is FP8 else None


def decoding(q: torch.Tensor, sizes: ProgramSizes = _SIZES) -> tuple[torch.Tensor, torch.Tensor, DecodeWork]:
    """Block tables, context lengths and work of 8 rows."""
    tables, lens = torch.zeros(8, 16, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    sums = torch.empty(16, q.shape[1])
    spans = torch.empty(2, 99, dtype=torch.int32) if sizes.order == "in shares" else None
    work = DecodeWork(
        sizes, torch.empty(5, 16, dtype=torch.int32), spans, torch.empty(8, _KV_HEADS, dtype=torch.int32),
        torch.empty(16, *q.shape[1:]), sums, sums,
    )  # fmt: skip
    return tables, lens, work


def compile_rope_decode(tensors: list[Any], *, with_norm: bool) -> int:
    """Bytes of shared memory."""
    q, k, v = tensors
    tables, lens, work = decoding(q)
    new = torch.empty(8, _KV_HEADS, q.shape[2], dtype=q.dtype)
    norm = new[0, 0] if with_norm else None
    rotation = Rotation(torch.empty(64, q.shape[2]), lens, lens, norm, norm, 1e-6)
    plan = AttentionPlan(tables, lens, 8, None, work)
    kernel = Recorder(rope_decode._rope_decode_kernel)
    with mock.patch.object(rope_decode, "_rope_decode_kernel", kernel):
        rope_decode.rope_decode_attention(
            q, new, new, rotation, k, v, plan, work, 0.1, None, scales_for(k.dtype)
        )
    return kernel.shared


def compile_decode(tensors: list[Any], sizes: ProgramSizes = _SIZES) -> int:
    """Bytes of shared memory."""
    q, k, v = tensors
    tables, lens, work = decoding(q, sizes)
    with mock.patch.object(decode, "_decode_kernel", Recorder(decode._decode_kernel)) as recorder:
        decode.decode_attention(q, k, v, tables, lens, work, q, 0.1, None, scales_for(k.dtype))
    return recorder.shared


def compile_prefill(tensors: list[Any], query_lens: list[int]) -> int:
    """Bytes of shared memory."""
    _, k, v = tensors
    q = torch.empty(sum(query_lens), *tensors[0].shape[1:], dtype=tensors[0].dtype)
    tables, lens = torch.zeros(len(query_lens), 16, dtype=torch.int32), torch.tensor(query_lens).int()
    chunks = chunks_of(query_lens, first=0)
    plan = AttentionPlan(tables, lens, 0, chunks, None)
    with mock.patch.object(prefill, "_prefill_kernel", Recorder(prefill._prefill_kernel)) as recorder:
        prefill.prefill_attention(q, k, v, plan, chunks, q, 0.1, None, scales_for(k.dtype))
    return recorder.shared


def compile_long_prefill(tensors: list[Any]) -> int:
    """Bytes of shared memory."""
    q, k, _ = tensors
    chunks = chunks_of([8], first=0)
    plan = AttentionPlan(torch.zeros(1, 16, dtype=torch.int32), torch.ones(1).int(), 0, chunks, None)
    pages = hopper.pages_at(1 << 20, 1 << 30, k.shape, k.dtype)
    assert pages is not None
    kernel = Recorder(hopper._long_prefill_kernel)
    with mock.patch.object(hopper, "_long_prefill_kernel", kernel):
        hopper.long_prefill_attention(
            q, pages, k.shape[1], k.shape[2], plan, chunks, q, 0.1, num_programs=132
        )
    return kernel.shared


def compile_stream(tiles: Tiles, *, is_gated: bool, with_residual: bool) -> int:
    """Bytes of shared memory."""
    x, weight = torch.empty(100, 512, dtype=torch.bfloat16), torch.empty(512, 512, dtype=torch.bfloat16)
    residual = torch.empty(100, 512, dtype=torch.bfloat16) if with_residual else None
    places = torch.empty(1 << 22, dtype=torch.int32)
    recorder = Recorder(linear.stream_kernel)
    with (
        mock.patch.object(linear, "stream_kernel", recorder),
        mock.patch.object(linear, "_partial_sums", return_value=places),
    ):
        linear.tiled_linear(x, weight, tiles, residual=residual, is_gated=is_gated)
    return recorder.shared


def launches() -> dict[str, Callable[[], int]]:
    """Blocks smaller than a tile and larger, every type, short chunks and long ones; decoding at several depths."""
    bfloat16 = torch.bfloat16
    found: dict[str, Callable[[], int]] = {}
    for block_size in (16, 128):
        for cache in (bfloat16, FP8):
            tensors = inputs(bfloat16, 128, 4, block_size, cache)
            name = f"{cache} block {block_size}"
            found[f"rope decode {name}"] = partial(compile_rope_decode, tensors, with_norm=block_size == 16)
            found[f"decode {name}"] = partial(compile_decode, tensors)
            for rows in (64, 256):
                sizes = program_sizes(4, rows)
                found[f"decode {sizes.order} {name}"] = partial(compile_decode, tensors, sizes)
            found[f"short {name}"] = lambda tensors=tensors: compile_prefill(tensors, [9, 30])  # type: ignore[misc]
            found[f"long {name}"] = lambda tensors=tensors: compile_prefill(tensors, [1024])  # type: ignore[misc]
    for dtype, head_dim, block_size in ((bfloat16, 128, 16), (torch.float16, 64, 128)):
        tensors = inputs(dtype, head_dim, 4, block_size, dtype)
        found[f"long on Hopper {dtype} {head_dim} {block_size}"] = partial(compile_long_prefill, tensors)
    narrow = inputs(torch.float16, 80, 3, 32, torch.float16)
    found["rope decode odd shape"] = partial(compile_rope_decode, narrow, with_norm=True)
    found["decode odd shape"] = lambda: compile_decode(narrow)
    found["short odd shape"] = lambda: compile_prefill(narrow, [9, 30])
    for m in (32, 64, 128):
        for n, k in [(6144, 4096), (4096, 14336), (1024, 2048)]:
            for is_gated in (False, True):
                tiles = choose(m, n, k, is_gated=is_gated, multiprocessors=132)
                if tiles is not None:
                    found[f"stream {tiles} {is_gated}"] = partial(
                        compile_stream, tiles, is_gated=is_gated, with_residual=not is_gated
                    )
    tensors = inputs(bfloat16, 128, 4, 16, bfloat16)
    for stages in (2, 3, 4):
        found[f"stages {stages}"] = partial(compile_decode, tensors, _SIZES._replace(num_stages=stages))
    return found


def main() -> None:
    """Compile everything."""
    results: dict[str, int | str] = {}
    with mock.patch.object(pdl, "options", return_value={"PDL": True, "launch_pdl": True}):
        for name, compiled in launches().items():
            try:
                results[name] = compiled()
            except Exception as error:  # each launch is one line of the report
                results[name] = f"{error!r:.500}"
    print(json.dumps(results))


if __name__ == "__main__":
    main()
