"""Triton: launchers. A row is split over several programs, so that one row alone uses more than one multiprocessor.

Nothing here depends on the values of the parameters, so all of it can be recorded in a CUDA graph; a program whose row
has no use for its kernel ends at once.
"""

from typing import Any

import torch
import triton

from kernels import pdl
from kernels.sampling.finish import finish_kernel
from kernels.sampling.narrowing import draw_kernel, survey_kernel
from kernels.sampling.scores import (
    ALL_PARAMETERS,
    GROUP,
    NO_PARAMETERS,
    TEMPERATURE_ONLY,
    pick_kernel,
    score_kernel,
)
from kernels.sampling.shortlist import LONGEST

_PIVOTS = (4, 8, 8)
"""How many scores the survey of each round measures: only the first round's is of all rows."""
_TILE = {"SPANS": 128, "WIDTH": 8, "num_warps": 4}
_ROW_TILE = {"SPANS": 128, "WIDTH": 16, "num_warps": 4}
_SMALLEST_CHUNK, _LARGEST_CHUNK = 2048, 16384
_ENOUGH_PROGRAMS = 2600


def _chunk_size(num_rows: int, vocab: int) -> int:
    """Tokens per program: few rows are split finely, to use every multiprocessor."""
    chunk = _SMALLEST_CHUNK
    while chunk < _LARGEST_CHUNK and num_rows * triton.cdiv(vocab, chunk) > _ENOUGH_PROGRAMS:
        chunk *= 2
    return chunk


def _most_chunks(vocab: int) -> int:
    most: int = triton.next_power_of_2(triton.cdiv(vocab, _SMALLEST_CHUNK))
    return most


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """See `kernels.sampling`."""
    unread = logits
    return _pick(_scores(logits, (unread,) * 6, (unread, unread), NO_PARAMETERS.value), logits.shape[1])


def sample_unfiltered(
    logits: torch.Tensor, temperature: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """See `kernels.sampling`."""
    unread = temperature
    columns = (temperature, unread, unread, unread, seeds, positions)
    return _pick(_scores(logits, columns, (unread, unread), TEMPERATURE_ONLY.value), logits.shape[1])


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
    num_groups = triton.cdiv(vocab, GROUP.value)

    def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    out, maxima = empty(torch.int64, num_rows), empty(torch.float32, num_rows, num_groups)
    found = empty(torch.int64, 2 * len(_PIVOTS) + 1, num_rows)
    keys = _scores(logits, (*filters, seeds, positions), (maxima, found[0]), ALL_PARAMETERS.value)
    if num_rows == 0:
        return out
    num_chunks, chunk = keys.shape[1], _chunk_size(num_rows, vocab)
    options: dict[str, Any] = {"CHUNKS": _most_chunks(vocab), **pdl.options()}
    last = (keys, empty(torch.int64, num_rows), empty(torch.float32, num_rows))
    shares = empty(torch.int64, num_rows)
    for number, num_pivots in enumerate(_PIVOTS):
        pivots = empty(torch.float32, num_rows, num_pivots)
        masses = empty(torch.int64, num_rows, num_pivots, num_chunks)
        lasts = torch.empty_like(keys)
        new = (torch.empty_like(keys), torch.empty_like(last[1]), torch.empty_like(last[2]))
        constants = {"PIVOTS": num_pivots, "FIRST": number == 0, **_TILE, **options}
        survey_kernel[keys.shape](
            logits, *filters, keys, *last, pivots, masses, lasts, found[2 * number], found[2 * number + 1],
            logits.stride(0), vocab, chunk, **constants,
        )  # fmt: skip
        draw_kernel[keys.shape](
            logits, *filters, seeds, positions, keys, *last, pivots, masses, lasts, shares, *new,
            found[2 * number + 1], found[2 * number + 2], logits.stride(0), vocab, chunk, **constants,
        )  # fmt: skip
        last = new
    active = empty(torch.int32, num_rows, num_groups)
    lists, befores = (empty(torch.int64, num_rows, LONGEST.value) for _ in range(2))
    finish_kernel[(num_rows,)](
        logits, *filters, seeds, positions, keys, maxima, active, lists, befores, last[0], last[2],
        shares, found[-1], out, logits.stride(0), vocab, num_groups, num_chunks,
        GROUPS=triton.next_power_of_2(num_groups), **_ROW_TILE, **options,
    )  # fmt: skip
    return out


def _scores(
    logits: torch.Tensor, columns: tuple[torch.Tensor, ...], written: tuple[torch.Tensor, ...], which: int
) -> torch.Tensor:
    """Keys int64 [n, chunks] of the best token of each chunk; `written` are `sample`'s maxima and tokens found."""
    num_rows, vocab = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the elements of a row must be adjacent")
    chunk = _chunk_size(num_rows, vocab)
    keys = torch.empty((num_rows, triton.cdiv(vocab, chunk)), dtype=torch.int64, device=logits.device)
    if num_rows:
        score_kernel[keys.shape](
            logits, *columns, keys, *written, logits.stride(0), vocab, triton.cdiv(vocab, GROUP.value),
            chunk, PARAMETERS=which, **_TILE, **pdl.options(),
        )  # fmt: skip
    return keys


def _pick(keys: torch.Tensor, vocab: int) -> torch.Tensor:
    num_rows, num_chunks = keys.shape
    out = torch.empty((num_rows,), dtype=torch.int64, device=keys.device)
    if num_rows:
        pick_kernel[(num_rows,)](
            keys, out, num_chunks, CHUNKS=_most_chunks(vocab), num_warps=1, **pdl.options()
        )
    return out
