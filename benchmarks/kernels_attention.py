"""Paged attention on the GPU: time, and share of a copy's bandwidth (decode) or of a matrix product's rate (prefill).

    python -m benchmarks.kernels_attention --out attention.json [--sweep] [--only decode|prefill] [--group 2 4 8]

With --sweep every case is also timed with other tiles, and the best are printed beside those that the kernel takes; of
long prefills on Hopper, which another kernel does, these are the plain kernel's. The file is written after every case,
so that an interruption costs only the one that runs.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch

from kernels.bench.rooflines import rooflines
from kernels.bench.timing import graph_us
from kernels.paged_attention import QUERY_TILE, AttentionPlan, Chunks, ProgramSizes, query_tiles
from kernels.paged_attention.decode import decode_attention
from kernels.paged_attention.kernel import plan_attention
from kernels.paged_attention.plan import plan_decode
from kernels.paged_attention.prefill import prefill_attention

_DEVICE = "cuda"
_KV_HEADS = 8
_HEAD_DIM = 128
# More than the second-level cache holds, in all.
_BYTES_IN_TURN = 256 << 20
_MOST_TOKENS_HELD = 192
# Programs that have shares run all at once, with so many registers that more warps would not do.
_MOST_WARPS = 16
DECODE = [
    (1, 256),
    (1, 1024),
    (1, 8192),
    (1, 32768),
    (8, 1024),
    (32, 1024),
    (64, 600),
    (256, 600),
    (256, 1500),
    (512, 400),
    (64, 100, 2048),
    (128, 100, 2048),
    (256, 100, 2048),
]
"""(rows, tokens of each), or (rows, fewest, most): evenly distributed."""
PREFILL = [(8, 512, 512), (2, 4096, 4096), (1, 8192, 8192), (4, 2048, 6144), (64, 32, 600)]
"""(chunks, tokens of each, tokens of each row in all)."""


@dataclass(frozen=True)
class Line:
    """One case; bytes or FLOP per second as a share of what the device does at best."""

    kind: str
    group: int
    block_size: int
    case: tuple[int, ...]
    us: float
    share: float
    options: dict[str, int]


@dataclass(frozen=True)
class Batch:
    """Random pages in random order."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    plan: AttentionPlan
    out: torch.Tensor


def make(lengths: list[int], query_lens: list[int], group: int, block_size: int) -> Batch:
    """Rows of these lengths; no query_lens: all decode."""
    per_row = -(-max(lengths) // block_size)
    num_blocks = per_row * len(lengths)
    place = (num_blocks, _KV_HEADS, block_size, _HEAD_DIM)
    k_cache, v_cache = (torch.randn(place, device=_DEVICE).bfloat16() for _ in range(2))
    tables = torch.randperm(num_blocks, device=_DEVICE).view(len(lengths), per_row).int()
    context_lens = torch.tensor(lengths, dtype=torch.int32, device=_DEVICE)
    chunks = None
    if query_lens:
        lens = torch.tensor(query_lens, dtype=torch.int32, device=_DEVICE)
        tiles = [torch.from_numpy(array.copy()).to(_DEVICE) for array in query_tiles(query_lens)]
        chunks = Chunks(lens, (lens.cumsum(0) - lens).int(), *tiles)
    num_decoding = 0 if query_lens else len(lengths)
    heads = group * _KV_HEADS
    plan = plan_attention(tables, context_lens, num_decoding, chunks, heads, _KV_HEADS, _HEAD_DIM)
    q = torch.randn(sum(query_lens) or len(lengths), heads, _HEAD_DIM, device=_DEVICE).bfloat16()
    return Batch(q, k_cache, v_cache, plan, torch.empty_like(q))


def decode_call(batch: Batch, options: dict[str, Any]) -> Callable[[], object]:
    plan, work = batch.plan, batch.plan.decode
    assert work is not None
    if options:
        rows, heads = len(plan.context_lens), batch.q.shape[1]
        work = plan_decode(
            plan.context_lens, rows, heads, _KV_HEADS, _HEAD_DIM, sizes=ProgramSizes(**options)
        )
    return partial(
        decode_attention, batch.q, batch.k_cache, batch.v_cache, plan.block_tables, plan.context_lens, work,
        batch.out, _HEAD_DIM**-0.5, None,
    )  # fmt: skip


def prefill_call(batch: Batch, options: dict[str, Any]) -> Callable[[], object]:
    assert batch.plan.chunks is not None
    return partial(
        prefill_attention, batch.q, batch.k_cache, batch.v_cache, batch.plan, batch.plan.chunks, batch.out,
        _HEAD_DIM**-0.5, None, **options,
    )  # fmt: skip


def decode_options(sweep: bool) -> Iterator[dict[str, Any]]:
    yield {}
    if sweep:
        for tile, warps, stages in product((32, 64, 128), (2, 4), (2, 3, 4)):
            if tile * (stages - 1) > _MOST_TOKENS_HELD:
                continue
            for programs in (3, 4, 5, 6, 8, 12):
                sizes = {"tile": tile, "num_warps": warps, "num_stages": stages, "programs_per_sm": programs}
                for order in ("as they come", "longest first", "in shares"):
                    if order != "in shares" or programs * warps <= _MOST_WARPS:
                        yield {**sizes, "order": order}


def prefill_options(sweep: bool, group: int, is_short: bool) -> Iterator[dict[str, int]]:
    yield {}
    if sweep:
        # Other tiles were slower in every case of an earlier sweep.
        shapes = [(64, 32, 4), (64, 64, 4), (128, 64, 8), (128, 128, 8)]
        packs = [pack for pack in (1, 2, 4) if group % pack == 0 and (is_short or pack == 1)]
        for (m, n, warps), pack, stages in product(shapes, packs, (2, 3)):
            yield {"block_m": m, "block_n": n, "num_warps": warps, "pack": pack, "num_stages": stages}


def measure(
    kind: str, group: int, block_size: int, case: tuple[int, ...], ceiling: float, sweep: bool
) -> Iterator[Line]:
    if kind == "decode":
        rows, fewest, most = case[0], case[1], case[-1]
        lengths, query_lens = [Random(number).randint(fewest, most) for number in range(rows)], []
        work = 2 * sum(lengths) * _KV_HEADS * _HEAD_DIM * 2
        call, choices = decode_call, decode_options(sweep)
        copies = max(1, min(16, _BYTES_IN_TURN // work))
    else:
        chunks, length, whole = case
        lengths, query_lens = [whole] * chunks, [length] * chunks
        pairs = chunks * (length * (whole - length) + length * (length + 1) // 2)
        work = 4 * group * _KV_HEADS * _HEAD_DIM * pairs
        call, copies = prefill_call, 1
        choices = prefill_options(sweep, group, length < QUERY_TILE)
    batches = [make(lengths, query_lens, group, block_size) for _ in range(copies)]
    for options in choices:
        try:
            us = graph_us([call(batch, options) for batch in batches])
        except Exception as error:
            print(f"  {kind} {case} {options}: {error!r:.150}", flush=True)
            continue
        yield Line(kind, group, block_size, case, us, work / (us * 1e-6) / ceiling, options)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sweep", action="store_true", help="time other tiles too")
    parser.add_argument("--only", choices=["decode", "prefill"], help="one kernel instead of both")
    parser.add_argument("--group", type=int, nargs="+", default=[2, 4, 8], help="query heads per KV head")
    parser.add_argument("--block-size", type=int, nargs="+", default=[16], help="tokens per KV block")
    asked = parser.parse_args()
    rates = rooflines(_DEVICE)
    copy, matmul = float(rates["copy_bytes_per_s"]), float(rates["matmul_flops_per_s"])
    print(f"{rates['device']}: copy {copy / 1e12:.2f} TB/s, bf16 matmul {matmul / 1e12:.0f} TFLOP/s")
    cases = [("decode", case, copy) for case in DECODE] + [("prefill", case, matmul) for case in PREFILL]
    found: list[dict[str, Any]] = []
    for group, block_size, (kind, case, ceiling) in product(asked.group, asked.block_size, cases):
        if asked.only not in (None, kind):
            continue
        lines = list(measure(kind, group, block_size, case, ceiling, asked.sweep))
        if lines:
            show(lines)
        found += [asdict(line) for line in lines]
        asked.out.write_text(json.dumps({"rooflines": rates, "lines": found}, indent=1) + "\n")


def show(lines: list[Line]) -> None:
    """The kernel's own choice, and the best of all."""
    taken, best = lines[0], min(lines, key=lambda line: line.us)
    print(
        f"{taken.kind:8} group {taken.group} block {taken.block_size:3} {taken.case!s:20} {taken.us:9.1f} us"
        f" {taken.share:6.1%}   best {best.us:9.1f} us {best.share:6.1%} {best.options}",
        flush=True,
    )


if __name__ == "__main__":
    main()
