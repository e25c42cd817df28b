"""Triton for few rows, torch's matrix product for many: `choice` decides."""

import functools

import torch
import triton
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels import pdl
from kernels.linear import Norm
from kernels.linear.choice import MOST_ROWS, Tiles, choose
from kernels.linear.exchange import EMPTY
from kernels.linear.gemv import gemv_kernel
from kernels.linear.skinny import ROWS, skinny_kernel
from kernels.linear.stream import stream_kernel
from kernels.rms_norm import rms_norm
from kernels.silu_mul import silu_mul

_MAX_TILES = 1 << 16
_SUMS_PER_PROGRAM = 128 * 128
# Of a Hopper multiprocessor.
_REGISTERS = 1 << 16
_HALF_OF_SHARED = 113 << 10


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm | None
) -> torch.Tensor:
    """See `kernels.linear`."""
    tiles = _choose(x, weight)
    if tiles is not None and tiles.kernel == "gemv":
        return tiled_linear(x, weight, tiles, bias=bias, norm=norm)
    normed = x if norm is None else rms_norm(x, norm.weight, norm.eps)
    if tiles is None:
        return torch.nn.functional.linear(normed, weight, bias)
    return tiled_linear(normed, weight, tiles, bias=bias)


def linear_add(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """See `kernels.linear`."""
    tiles = _choose(x, weight)
    if tiles is None:
        # In place: torch would copy the residual first.
        return residual.addmm_(x, weight.t())
    return tiled_linear(x, weight, tiles, residual=residual)


def gate_up_silu(x: torch.Tensor, weight: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """See `kernels.linear`."""
    tiles = _choose(x, weight, is_gated=True)
    if tiles is not None and tiles.kernel == "gemv":
        return tiled_linear(x, weight, tiles, norm=norm, is_gated=True)
    normed = x if norm is None else rms_norm(x, norm.weight, norm.eps)
    if tiles is None:
        return silu_mul(torch.nn.functional.linear(normed, weight))
    return tiled_linear(normed, weight, tiles, is_gated=True)


def _choose(x: torch.Tensor, weight: torch.Tensor, *, is_gated: bool = False) -> Tiles | None:
    # In float32 the tensor cores would round, and the ordinary units need tiles of their own.
    if len(x) == 0 or len(x) > MOST_ROWS or x.dtype == torch.float32:
        return None
    multiprocessors = _hopper_multiprocessors(x.device) if is_streamable(x, weight) else 0
    n = len(weight) // 2 if is_gated else len(weight)
    return choose(len(x), n, x.shape[1], is_gated=is_gated, multiprocessors=multiprocessors)


def is_streamable(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the stream kernel can take them: it copies 16 bytes at the least, and keeps 16 rows together."""
    return len(weight) % 16 == 0 and all(
        operand.stride(1) == 1 and operand.stride(0) % 8 == 0 and operand.data_ptr() % 16 == 0
        for operand in (x, weight)
    )


@functools.cache
def _hopper_multiprocessors(device: torch.device) -> int:
    """0 for other GPUs, which lack its instructions, and for the interpreter, which lacks Gluon."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


def tiled_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    tiles: Tiles,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    norm: Norm | None = None,
    is_gated: bool = False,
) -> torch.Tensor:
    """Any of the three ops with given tiles, a norm only by gemv. Rows may lie apart; elements of a row must not.

    For `stream`, a Hopper GPU and operands that are streamable.
    """
    m, k = x.shape
    n = weight.shape[0] // 2 if is_gated else weight.shape[0]
    if x.stride(1) != 1 or weight.stride(1) != 1 or (residual is not None and residual.stride(1) != 1):
        raise ValueError("the elements of a row must be adjacent")
    if tiles.kernel != "stream" and m > (1 if tiles.kernel == "gemv" else ROWS.value):
        raise ValueError(f"{m} rows are too many for the {tiles.kernel} kernel")
    if norm is not None and tiles.kernel != "gemv":
        raise ValueError("only the gemv kernel norms its input")
    up = weight[n:] if is_gated else weight
    num_tiles = triton.cdiv(n, tiles.block_n)
    if tiles.split_k > 1 and num_tiles > _MAX_TILES:
        raise ValueError(f"a split has at most {_MAX_TILES} tiles, not {num_tiles}")
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    extras = (x if bias is None else bias, x if residual is None else residual)
    flags = {"GATED": is_gated, "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None}
    if tiles.kernel == "stream":
        _stream(x, weight, tiles, *extras, out, flags)
        return out
    if tiles.kernel == "gemv":
        gemv_kernel[(num_tiles,)](
            x, weight, up, *extras, x if norm is None else norm.weight, out, weight.stride(0), n,
            0.0 if norm is None else norm.eps, K=k, **flags, HAS_NORM=norm is not None,
            BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k, num_warps=tiles.num_warps, **pdl.options(),
        )  # fmt: skip
        return out
    size = tiles.split_k * (2 if is_gated else 1) * tiles.block_n * ROWS.value
    # Never written without a split.
    partial = torch.empty(
        (num_tiles * size if tiles.split_k > 1 else 1,), dtype=torch.float32, device=x.device
    )
    per_split = triton.cdiv(triton.cdiv(k, tiles.block_k), tiles.split_k) * tiles.block_k
    skinny_kernel[(num_tiles, tiles.split_k)](
        x, weight, up, *extras, out, partial, _arrivals(x.device), x.stride(0), weight.stride(0),
        extras[1].stride(0), m, n,
        K=k, K_PER_SPLIT=per_split, SPLIT_K=tiles.split_k, **flags, BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k, STAGES=tiles.num_stages, num_warps=tiles.num_warps, **pdl.options(),
    )  # fmt: skip
    return out


@functools.cache
def _arrivals(device: torch.device) -> torch.Tensor:
    """Counters that every launch leaves at zero, for one stream at a time. Made before a graph records them."""
    return torch.zeros((_MAX_TILES,), dtype=torch.int32, device=device)


def _stream(
    x: torch.Tensor,
    weight: torch.Tensor,
    tiles: Tiles,
    bias: torch.Tensor,
    residual: torch.Tensor,
    out: torch.Tensor,
    flags: dict[str, bool],
) -> None:
    (m, k), rows, columns = x.shape, tiles.block_n, tiles.block_m
    programs = triton.cdiv(len(weight), rows) * triton.cdiv(m, columns) * tiles.split_k
    partial = _partial_sums(x.device)
    if tiles.split_k > 1 and programs * rows * columns > len(partial):
        raise ValueError(f"{programs} programs cannot wait for each other")
    stage_bytes = (rows + columns) * tiles.block_k * x.element_size()
    stream_kernel[(programs,)](
        _in_pairs(weight, rows, tiles.block_k, is_gated=flags["GATED"]),
        TensorDescriptor(x, [m, k], [x.stride(0), 1], [columns, tiles.block_k], NVMMASharedLayout(128, 16, 2)),
        bias, residual, out, partial, residual.stride(0), m, out.shape[1], k,
        **flags, BLOCK=rows, COLUMNS=columns, BLOCK_K=tiles.block_k, STAGES=tiles.num_stages,
        SPLIT=tiles.split_k, num_warps=tiles.num_warps,
        maxnreg=_registers(rows * columns, stage_bytes * tiles.num_stages, tiles.num_warps), **pdl.options(),
    )  # fmt: skip


def _in_pairs(weight: torch.Tensor, rows: int, block_k: int, *, is_gated: bool) -> TensorDescriptor:
    """weight as [groups, 2, 8, k]: rows of gate and of up, or every other row, in eights."""
    (n, k), stride = weight.shape, weight.stride(0)
    pair, row = (n // 2 * stride, stride) if is_gated else (stride, 2 * stride)
    return TensorDescriptor(
        weight, [n // 16, 2, 8, k], [8 * row, pair, row, 1], [rows // 16, 2, 8, block_k],
        NVMMASharedLayout(128, 16, 4),
    )  # fmt: skip


def _registers(sums: int, shared_bytes: int, num_warps: int) -> int:
    """For each thread: so few that small programs of the next kernel fit beside, or others of half the memory."""
    threads = 32 * (num_warps + 4)
    if sums > 64 * 32 * num_warps:
        return _REGISTERS // threads // 8 * 8
    return int(_REGISTERS * (7 / 8 if shared_bytes > _HALF_OF_SHARED else 13 / 32)) // threads // 8 * 8


@functools.cache
def _partial_sums(device: torch.device) -> torch.Tensor:
    """Where programs leave sums for each other, for one stream at a time. Made before a graph records them."""
    size = torch.cuda.get_device_properties(device).multi_processor_count * _SUMS_PER_PROGRAM
    return torch.full((size,), EMPTY, dtype=torch.int32, device=device)
