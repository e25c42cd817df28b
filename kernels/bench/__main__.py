"""Every kernel of a decoder at the sizes of some models, against what the device can do.

    python -m kernels.bench --config llama-8b=shapes/llama-8b/config.json --batch 1 64 256

Prints one JSON object: `rooflines`, as `kernels.bench.rooflines` measures them, and `results`, one object per case. A
case that fails says so in its `error`, and the rest goes on. On a GPU the times are those of a CUDA graph's replays; on
a CPU they are those of the references, which stand for nothing but this program's own working.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from kernels.bench.attention_cases import decode_cases, prefill_cases, shared_cases
from kernels.bench.cases import Case, Sizes, sizes_of
from kernels.bench.layer_cases import layer_cases, product_cases
from kernels.bench.rooflines import rooflines
from kernels.bench.row_cases import begin_case, checksum_cases, commit_case
from kernels.bench.sampling_cases import sampling_cases
from kernels.bench.timing import call_us

_PREFILL_TOKENS = 8192
# Small ops are timed in longer graphs, so that the graph's own start does not count.
_MANY, _MANY_BELOW_BYTES = 10, 64 << 20


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--config", action="append", required=True, help="NAME=PATH of a config.json")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 256], help="rows that decode")
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 8192], help="tokens of each row")
    parser.add_argument("--prompt-len", type=int, default=4096, help="tokens of a prompt in a prefill")
    parser.add_argument("--block-size", type=int, default=16, help="tokens per KV block")
    asked = parser.parse_args()
    device = (
        "cuda" if asked.device == "cuda" or (asked.device == "auto" and torch.cuda.is_available()) else "cpu"
    )
    rates = rooflines(device)
    results = []
    for pair in asked.config:
        name, _, path = pair.partition("=")
        sizes = sizes_of(name, json.loads(Path(path).read_text()))
        for case in _cases(sizes, asked, device):
            results.append({"model": name, **_measured(case, rates, device)})
            print(f"{name} {case.op} {case.rows} {case.detail}", file=sys.stderr, flush=True)
    print(json.dumps({"rooflines": rates, "results": results}))


def _cases(sizes: Sizes, asked: argparse.Namespace, device: str) -> Iterator[Case]:
    for rows in asked.batch:
        yield from product_cases(sizes, rows, device)
        yield from layer_cases(sizes, rows, device)
        yield commit_case(sizes, rows, asked.block_size, device)
        for context in asked.context:
            yield begin_case(rows, context, asked.block_size, device)
            yield from decode_cases(sizes, rows, context, asked.block_size, device)
            yield from shared_cases(sizes, rows, context, asked.block_size, device)
        yield from sampling_cases(sizes, rows, device)
    prompts = max(1, _PREFILL_TOKENS // asked.prompt_len) if device == "cuda" else 1
    yield from prefill_cases(sizes, prompts, asked.prompt_len, asked.block_size, device)
    yield from checksum_cases(sizes, asked.block_size, device)
    products = product_cases(sizes, prompts * asked.prompt_len, device)
    # Only a prompt's last row goes through the head.
    yield from (case for case in products if case.op != "product: head")


def _measured(case: Case, rates: dict[str, str | float], device: str) -> dict[str, object]:
    found: dict[str, object] = {"op": case.op, "rows": case.rows, "detail": case.detail}
    found |= {"bytes": case.num_bytes, "flops": case.flops}
    memory_us = 1e6 * case.num_bytes / float(rates["copy_bytes_per_s"])
    compute_us = 1e6 * case.flops / float(rates["matmul_flops_per_s"])
    try:
        us = call_us(case.calls, device, _MANY if case.num_bytes < _MANY_BELOW_BYTES else 1)
    except Exception as error:  # one kernel's failure is one line of the table
        return {**found, "error": f"{error!r:.300}"}
    return {
        **found,
        "us": us,
        "floor_us": max(memory_us, compute_us),
        "bound": "memory" if memory_us >= compute_us else "compute",
        "share": max(memory_us, compute_us) / us,
        "bytes_per_s": case.num_bytes / us * 1e6,
        "flops_per_s": case.flops / us * 1e6,
    }


if __name__ == "__main__":
    main()
