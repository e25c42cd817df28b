"""Triton: launchers. A row is split over several programs, so that one row alone uses more than one multiprocessor.

Nothing here depends on the values of the parameters, so all of it can be recorded in a CUDA graph. `greedy` and
`sample_unfiltered` read the logits once; `sample` three times where a row is filtered.
"""

import torch
import triton

from kernels import pdl
from kernels.sampling.filters import collect_kernel, draw_kernel, survey_kernel
from kernels.sampling.scores import (
    ALL_PARAMETERS,
    NO_PARAMETERS,
    TEMPERATURE_ONLY,
    pick_kernel,
    score_kernel,
)

_PIVOTS = 16
_LIST_CAPACITY = 8192
_BLOCK = 1024
_SURVEY_BLOCK = 512


def _chunk_size(num_rows: int) -> int:
    """Tokens per program: few rows are split finely, to use every multiprocessor."""
    return 2048 if num_rows <= 16 else 8192


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """See `kernels.sampling`."""
    placeholder = logits
    keys = _scores(logits, (placeholder,) * 6, NO_PARAMETERS.value)
    return _pick(keys)


def sample_unfiltered(
    logits: torch.Tensor, temperature: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """See `kernels.sampling`."""
    unread = temperature
    keys = _scores(logits, (temperature, unread, unread, unread, seeds, positions), TEMPERATURE_ONLY.value)
    return _pick(keys)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """See `kernels.sampling`."""
    num_rows, vocab = logits.shape
    filters = (temperature, top_k, top_p, min_p)
    keys = _scores(logits, (*filters, seeds, positions), ALL_PARAMETERS.value)
    num_chunks, device = keys.shape[1], logits.device
    out = torch.empty((num_rows,), dtype=torch.int64, device=device)
    if num_rows == 0:
        return out
    counts = torch.empty((num_rows, num_chunks, _PIVOTS), dtype=torch.int32, device=device)
    masses = torch.empty((num_rows, num_chunks, _PIVOTS), dtype=torch.float32, device=device)
    totals = torch.empty((num_rows, num_chunks), dtype=torch.int64, device=device)
    capacity = min(_LIST_CAPACITY, vocab)
    list_scores = torch.empty((num_rows, capacity), dtype=torch.float32, device=device)
    list_tokens = torch.empty((num_rows, capacity), dtype=torch.int32, device=device)
    surveys, lists = (keys, counts, masses, totals), (list_scores, list_tokens)
    chunks, chunk = triton.next_power_of_2(num_chunks), _chunk_size(num_rows)
    survey_kernel[keys.shape](
        logits, *filters, *surveys, logits.stride(0), vocab,
        CHUNK=chunk, CHUNKS=chunks, BLOCK=_SURVEY_BLOCK, PIVOTS=_PIVOTS, num_warps=8, **pdl.options(),
    )  # fmt: skip
    collect_kernel[keys.shape](
        logits, *filters, *surveys, *lists, logits.stride(0), vocab,
        CHUNK=chunk, CHUNKS=chunks, BLOCK=_BLOCK, PIVOTS=_PIVOTS, CAPACITY=capacity,
        num_warps=4, **pdl.options(),
    )  # fmt: skip
    draw_kernel[(num_rows,)](
        logits, *filters, seeds, positions, *surveys, *lists, out, logits.stride(0), vocab, num_chunks,
        CHUNKS=chunks, BLOCK=_BLOCK, PIVOTS=_PIVOTS, CAPACITY=capacity, num_warps=4, **pdl.options(),
    )  # fmt: skip
    return out


def _scores(logits: torch.Tensor, parameters: tuple[torch.Tensor, ...], which: int) -> torch.Tensor:
    """Keys int64 [n, chunks] of the best token of each chunk."""
    num_rows, vocab = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the elements of a row must be adjacent")
    chunk = _chunk_size(num_rows)
    keys = torch.empty((num_rows, triton.cdiv(vocab, chunk)), dtype=torch.int64, device=logits.device)
    if num_rows:
        score_kernel[keys.shape](
            logits, *parameters, keys, logits.stride(0), vocab,
            PARAMETERS=which, CHUNK=chunk, BLOCK=_BLOCK, num_warps=4, **pdl.options(),
        )  # fmt: skip
    return keys


def _pick(keys: torch.Tensor) -> torch.Tensor:
    num_rows, num_chunks = keys.shape
    out = torch.empty((num_rows,), dtype=torch.int64, device=keys.device)
    if num_rows:
        pick_kernel[(num_rows,)](
            keys, out, num_chunks, CHUNKS=triton.next_power_of_2(num_chunks), num_warps=1, **pdl.options()
        )
    return out
