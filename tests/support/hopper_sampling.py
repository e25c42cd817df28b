"""Compiles what sampling, log-probabilities and edits launch for a Hopper GPU, on a machine that has none.

    python -m tests.support.hopper_sampling

Prints JSON: for each kernel and dtype of the logits the shared memory that it takes in bytes, or the error. A process
of its own, because in the tests' process Triton interprets.
"""

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from kernels import pdl
from kernels.logits import Bans, Bias, Bitmask, TokenLists
from kernels.logits import kernel as logits_kernel
from kernels.logprobs import kernel as logprobs_kernel
from kernels.sampling import kernel as sampling_kernel
from tests.support.hopper_compiler import Recorder

_ROWS, _VOCAB = 256, 151936
_INT32, _INT64, _FLOAT32 = torch.int32, torch.int64, torch.float32


def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape or (_ROWS,), dtype=dtype, device="meta")


def sampling(logits: torch.Tensor) -> None:
    """All the ways to choose."""
    seeds, positions, top_k = (empty(_INT64) for _ in range(3))
    temperature, top_p, min_p = (empty(_FLOAT32) for _ in range(3))
    sampling_kernel.greedy(logits)
    sampling_kernel.sample_unfiltered(logits, temperature, seeds, positions)
    sampling_kernel.sample(logits, temperature, top_k, top_p, min_p, seeds, positions)


def log_probabilities(logits: torch.Tensor) -> None:
    """Of the chosen token alone, and with others."""
    for num_top in (0, 20):
        logprobs_kernel.logprobs(logits, empty(_INT64), num_top)


def edits(logits: torch.Tensor) -> None:
    """Penalties, and all edits at once."""
    counts, in_prompt = empty(_INT32, _ROWS, _VOCAB), empty(torch.bool, _ROWS, _VOCAB)
    factors = (empty(_FLOAT32) for _ in range(3))
    penalised = logits_kernel.apply_penalties(logits, empty(_INT64), counts, in_prompt, *factors)
    lists = TokenLists(empty(_INT32, _ROWS + 1), empty(_INT32, 900))
    bans = Bans(lists, empty(_INT64), empty(_INT64))
    bitmask = Bitmask(empty(_INT64, 9), empty(_INT32, 9, _VOCAB // 32))
    logits_kernel.edit_logits(penalised, Bias(lists, empty(_FLOAT32, 900)), bans, bitmask)


PARTS: dict[ModuleType, tuple[Callable[[torch.Tensor], None], list[str]]] = {
    sampling_kernel: (
        sampling, ["score_kernel", "survey_kernel", "draw_kernel", "finish_kernel", "pick_kernel"]
    ),
    logprobs_kernel: (log_probabilities, ["_chunk_kernel", "_join_kernel"]),
    logits_kernel: (edits, ["_penalties_kernel", "_lists_kernel", "_mask_kernel"]),
}  # fmt: skip


def main() -> None:
    """Compile everything."""
    results: dict[str, Any] = {}
    with mock.patch.object(pdl, "options", return_value={"PDL": True, "launch_pdl": True}):
        for module, (run, names) in PARTS.items():
            for dtype in (torch.bfloat16, torch.float32):
                recorders = {name: Recorder(getattr(module, name)) for name in names}
                with mock.patch.multiple(module, **recorders):
                    try:
                        run(empty(dtype, _ROWS, _VOCAB))
                    except Exception as error:  # each part is one line of the report
                        results[f"{module.__name__} {dtype}"] = f"{error!r:.500}"
                for name, recorder in recorders.items():
                    results[f"{name} {dtype}"] = recorder.shared
    print(json.dumps(results))


if __name__ == "__main__":
    main()
