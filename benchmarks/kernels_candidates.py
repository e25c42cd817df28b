"""Candidates for the attention kernels on a Hopper GPU: checked against the reference, then timed beside those in use.

    python -m benchmarks.kernels_candidates --out candidates.json --seconds 110

Everything is compiled first, by as many processes as there are cores. What fails or differs is named and not timed. The
file is written after every case; when the seconds are over, what is left is left out.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels_attention import Batch, make
from kernels.bench.rooflines import rooflines
from kernels.bench.timing import graph_us
from kernels.paged_attention import decode, long_prefill, prefill, reference
from kernels.paged_attention.plan import plan_decode

_KV_HEADS, _HEAD_DIM = 8, 128
_SCALE = _HEAD_DIM**-0.5
_TOLERANCE = 0.03
_BYTES_IN_TURN = 256 << 20
PREFILL = [(2, 4096, 4096), (16, 512, 512), (1, 8192, 8192), (8, 1024, 1024), (4, 2048, 6144), (32, 256, 256)]
"""(chunks, tokens of each, tokens of each row in all)."""
DECODE = [(32, 1024), (64, 512), (8, 4096), (256, 768), (1, 1024)]
"""(rows, tokens of each)."""
_PREFILL_CANDIDATES: list[tuple[str, dict[str, Any]]] = [
    ("in use", {}),
    ("in use", {"block_m": 128, "block_n": 128, "num_warps": 8, "num_stages": 3}),
    ("in use", {"block_m": 128, "block_n": 64, "num_warps": 8, "num_stages": 3}),
    ("long", {"ahead": 2}),
    ("long", {"ahead": 3}),
    ("long", {"ahead": 2, "is_fenced": False}),
    ("long", {"ahead": 3, "is_fenced": False}),
]
_DECODE_TILES = [
    (64, 2, 2),
    (64, 2, 3),
    (64, 2, 4),
    (64, 4, 3),
    (32, 2, 3),
    (32, 2, 4),
    (128, 4, 2),
    (128, 4, 3),
]
"""Tile, warps, stages."""
_PROGRAMS_PER_SM = (2, 3, 4, 6)
_CHECKED_CHUNKS = [(300, 471), (1, 5), (1024, 1024), (129, 129), (700, 1000), (128, 640)]


@dataclass(frozen=True)
class Job:
    """A candidate: what to compile, check and time."""

    kind: str
    name: str
    group: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A time; `share` of a copy's bandwidth (decode) or of a product's rate (prefill)."""

    job: Job
    case: tuple[int, ...]
    us: float
    share: float


def jobs() -> list[Job]:
    """In the order in which they are timed."""
    found = [
        Job("prefill", name, group, options) for group in (2, 4) for name, options in _PREFILL_CANDIDATES
    ]
    for group in (2, 4, 8):
        found.append(Job("decode", "in use", group, {}))
        found.append(Job("decode", "early", group, {"reads_early": True}))
        for tile, warps, stages in _DECODE_TILES:
            found.append(
                Job("decode", "in use", group, {"tile": tile, "num_warps": warps, "num_stages": stages})
            )
    return found


def call_of(job: Job, batch: Batch, window: int | None = None, programs: int = 0) -> Callable[[], object]:
    plan = batch.plan
    if job.kind == "prefill":
        run: Any = long_prefill.long_prefill_attention if job.name == "long" else prefill.prefill_attention
        caches = (batch.k_cache, batch.v_cache)
        return partial(run, batch.q, *caches, plan, plan.chunks, batch.out, _SCALE, window, **job.options)
    work = plan.decode
    assert work is not None
    if programs:
        rows, heads = len(plan.context_lens), batch.q.shape[1]
        work = plan_decode(plan.context_lens, rows, heads, _KV_HEADS, _HEAD_DIM, programs_per_sm=programs)
    return partial(
        decode.decode_attention, batch.q, batch.k_cache, batch.v_cache, plan.block_tables, plan.context_lens, work,
        batch.out, _SCALE, window, **job.options,
    )  # fmt: skip


def checked_batch(job: Job) -> Batch:
    """Rows of several lengths, whose tables are as wide as in the cases, so that nothing is compiled again."""
    if job.kind == "prefill":
        lengths, query_lens = [whole for _, whole in _CHECKED_CHUNKS], [n for n, _ in _CHECKED_CHUNKS]
    else:
        lengths, query_lens = [1024, 1, 700, 64, 65, 129, 1000, 500], []
    return make(lengths, query_lens, job.group, 16)


def check(job: Job) -> float:
    """The largest difference from the reference, with a window too where the kernel has another way through it."""
    torch.manual_seed(0)
    batch = checked_batch(job)
    worst = 0.0
    for window in (None, 100) if job.name == "long" and job.group == 2 else (None,):
        q, k, v = batch.q.float(), batch.k_cache.float(), batch.v_cache.float()
        wanted = reference.paged_attention(q, k, v, batch.plan, _SCALE, window)
        batch.out.fill_(float("nan"))
        call_of(job, batch, window)()
        difference = (batch.out.float() - wanted).abs().max().item()
        if not difference <= _TOLERANCE:
            raise ValueError(f"differs by {difference:.3g} with a window of {window}")
        worst = max(worst, difference)
    return worst


def compile_job(job: Job) -> str:
    """Compile by running it; what went wrong, or nothing."""
    try:
        check(job)
    except Exception as error:
        return f"{job}: {error!r:.300}"
    return ""


def cases_of(job: Job) -> list[tuple[int, ...]]:
    if job.kind == "prefill":
        return list(PREFILL if job.group == 2 else PREFILL[:3])
    return list(DECODE if "tile" not in job.options else DECODE[:4])


def timed(job: Job, case: tuple[int, ...], rates: dict[str, Any]) -> Iterator[Line]:
    if job.kind == "prefill":
        chunks, length, whole = case
        batches = [make([whole] * chunks, [length] * chunks, job.group, 16)]
        pairs = chunks * (length * (whole - length) + length * (length + 1) // 2)
        work, ceiling = 4 * job.group * _KV_HEADS * _HEAD_DIM * pairs, float(rates["matmul_flops_per_s"])
    else:
        rows, length = case
        work, ceiling = 4 * rows * length * _KV_HEADS * _HEAD_DIM, float(rates["copy_bytes_per_s"])
        copies = max(1, min(8, _BYTES_IN_TURN // work))
        batches = [make([length] * rows, [], job.group, 16) for _ in range(copies)]
    for programs in _PROGRAMS_PER_SM if "tile" in job.options else (0,):
        us = graph_us([call_of(job, batch, programs=programs) for batch in batches])
        options = dict(job.options) | ({"programs_per_sm": programs} if programs else {})
        yield Line(Job(job.kind, job.name, job.group, options), case, us, work / (us * 1e-6) / ceiling)


def measure(wanted: list[Job], out: Path, rates: dict[str, Any], deadline: float) -> None:
    lines: list[Line] = []
    wrong: list[str] = []
    for job in wanted:
        if time.monotonic() > deadline:
            wrong.append(f"no time left for {job}")
            continue
        try:
            print(
                f"{job.kind} {job.name} group {job.group} {job.options}: differs by {check(job):.4f}",
                flush=True,
            )
            for case in cases_of(job):
                lines += timed(job, case, rates)
        except Exception as error:
            wrong.append(f"{job}: {error!r:.300}")
        found = [asdict(line) for line in lines]
        out.write_text(json.dumps({"rooflines": rates, "lines": found, "wrong": wrong}, indent=1) + "\n")
    show(lines)
    print(*wrong, sep="\n", flush=True)


def show(lines: list[Line]) -> None:
    """Every prefill; of decode what is in use and the best three."""
    for kind, group, case in sorted({(line.job.kind, line.job.group, line.case) for line in lines}):
        these = [line for line in lines if (line.job.kind, line.job.group, line.case) == (kind, group, case)]
        print(f"{kind} group {group} {case}")
        best = sorted(these, key=lambda line: line.us)[: 3 if kind == "decode" else None]
        chosen = [line for line in these if not line.job.options and line not in best] + best
        for line in chosen:
            print(f"   {line.us:9.1f} us {line.share:6.1%} {line.job.name} {line.job.options}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=110, help="begin nothing new after so many")
    asked = parser.parse_args()
    started = time.monotonic()
    wanted = jobs()
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    # A kernel that reads where it must not takes its process with it: the newest come last, one to a process.
    wanted.sort(key=lambda job: job.name == "long")
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        errors = list(pool.map(compile_job, wanted))
    print(*filter(None, errors), sep="\n", flush=True)
    wanted = [job for job, error in zip(wanted, errors, strict=True) if not error]
    wanted.sort(key=lambda job: job.kind == "decode")
    print(f"compiled {len(wanted)} candidates by {time.monotonic() - started:.0f} s", flush=True)
    rates = rooflines("cuda")
    print(rates, flush=True)
    measure(wanted, asked.out, rates, started + asked.seconds)


if __name__ == "__main__":
    main()
