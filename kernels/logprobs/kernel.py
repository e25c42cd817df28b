# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: each chunk of a row gives the sum of its exponentials and its groups' best logits; one program joins them.

The likeliest tokens are those of sampling's shortlist. Among equals the lower id comes first. More than MAX_TOP
likeliest tokens are left to the reference.
"""

import torch
import triton
import triton.language as tl

from kernels import pdl
from kernels.logprobs import reference
from kernels.sampling.scores import (
    GROUP,
    load_tile,
    pack,
    packed_score,
    packed_token,
    store_group_maxima,
)
from kernels.sampling.shortlist import AT_ONCE, LONGEST, collect, listed, standing

MAX_TOP = 128
"""A shortlist of so many is hardly ever too long."""
_CHUNK = 4096
_TILE = {"SPANS": 256, "WIDTH": 16, "num_warps": 8}
_HIGHEST_KEY, _LOWEST_KEY = tl.constexpr(2**63 - 1), tl.constexpr(-(2**63))


@triton.jit
def _chunk_kernel(
    logits_ptr,
    maxima_ptr,
    highest_ptr,
    sums_ptr,
    row_stride,
    vocab,
    num_groups,
    HAS_TOP: tl.constexpr,
    SPANS: tl.constexpr,
    WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Group maxima [n, groups]; highest logit and sum of exp(logit - highest) [n, chunks]; all float32."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    start = chunk * (SPANS * WIDTH)
    pdl.wait(PDL)
    logits, _ = load_tile(logits_ptr + row * row_stride, start, vocab, SPANS, WIDTH)
    x = logits.to(tl.float32)
    span_maxima = tl.max(x, axis=1)
    if HAS_TOP:
        store_group_maxima(span_maxima, maxima_ptr + row * num_groups, start, vocab, SPANS, WIDTH)
    highest = tl.max(span_maxima, axis=0)
    at = row * tl.num_programs(1) + chunk
    tl.store(highest_ptr + at, highest)
    # A chunk of -inf alone adds nothing.
    exponentials = tl.exp(x - tl.where(highest == float("-inf"), 0.0, highest))
    tl.store(sums_ptr + at, tl.sum(tl.sum(exponentials, axis=1), axis=0))


@triton.jit
def _store_listed(list_ptr, length, highest, top_ids_ptr, top_logprobs_ptr, num_top, log_total):
    """The best num_top of a list, each at its place."""
    for start in range(0, length, AT_ONCE):
        keys, are_listed = listed(list_ptr, length, start, AT_ONCE)
        places, _ = standing(list_ptr, length, keys, highest)
        stored = are_listed & (places < num_top)
        tl.store(top_ids_ptr + places, packed_token(keys), mask=stored)
        tl.store(top_logprobs_ptr + places, packed_score(keys) - log_total, mask=stored)


@triton.jit
def _store_searched(
    row_ptr, vocab, top_ids_ptr, top_logprobs_ptr, num_top, log_total,
    SPANS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The same by as many searches of the row: where too many are equal, or too few are finite."""
    last = tl.full((), _HIGHEST_KEY, tl.int64)
    for rank in range(num_top):
        best = tl.full((), _LOWEST_KEY, tl.int64)
        for start in range(0, vocab, SPANS * WIDTH):
            logits, tokens = load_tile(row_ptr, start, vocab, SPANS, WIDTH)
            keys = pack(logits.to(tl.float32), tokens)
            keys = tl.where((tokens < vocab) & (keys < last), keys, _LOWEST_KEY)
            best = tl.maximum(best, tl.max(tl.max(keys, axis=1), axis=0))
        tl.store(top_ids_ptr + rank, packed_token(best))
        tl.store(top_logprobs_ptr + rank, packed_score(best) - log_total)
        last = best


@triton.jit(do_not_specialize=["num_top"])
def _join_kernel(
    logits_ptr,
    token_ids_ptr,
    maxima_ptr,
    highest_ptr,
    sums_ptr,
    active_ptr,
    lists_ptr,
    chosen_ptr,
    top_ids_ptr,
    top_logprobs_ptr,
    row_stride,
    vocab,
    num_groups,
    num_chunks,
    num_top,
    HAS_TOP: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    SPANS: tl.constexpr,
    WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    chunks = tl.arange(0, CHUNKS)
    mask = chunks < num_chunks
    pdl.wait(PDL)
    highests = tl.load(highest_ptr + row * num_chunks + chunks, mask=mask, other=float("-inf"))
    sums = tl.load(sums_ptr + row * num_chunks + chunks, mask=mask, other=0.0)
    highest = tl.max(highests, axis=0)
    log_total = highest + tl.log(tl.sum(sums * tl.exp(highests - highest), axis=0))
    chosen = tl.load(row_ptr + tl.load(token_ids_ptr + row)).to(tl.float32)
    tl.store(chosen_ptr + row, chosen - log_total)
    if HAS_TOP:
        list_ptr = lists_ptr + row * LONGEST
        top_ids_ptr += row * num_top
        top_logprobs_ptr += row * num_top
        length, _ = collect(
            row_ptr, maxima_ptr + row * num_groups, active_ptr + row * num_groups, list_ptr, num_groups,
            vocab, 1.0, num_top, GROUPS,
        )  # fmt: skip
        if (length < num_top) | (length > LONGEST):
            _store_searched(row_ptr, vocab, top_ids_ptr, top_logprobs_ptr, num_top, log_total, SPANS, WIDTH)
        else:
            _store_listed(list_ptr, length, highest, top_ids_ptr, top_logprobs_ptr, num_top, log_total)


def logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `kernels.logprobs`. Rows may lie apart; elements of a row must not."""
    num_rows, vocab = logits.shape
    if num_top > MAX_TOP:
        return reference.logprobs(logits, token_ids, num_top)
    if logits.stride(1) != 1:
        raise ValueError("the elements of a row must be adjacent")
    if num_top > vocab:
        raise ValueError(f"no {num_top} tokens in a vocabulary of {vocab}")

    def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    chosen = empty(torch.float32, num_rows)
    top_ids, top_logprobs = empty(torch.int64, num_rows, num_top), empty(torch.float32, num_rows, num_top)
    if num_rows == 0:
        return chosen, top_ids, top_logprobs
    num_chunks, num_groups = triton.cdiv(vocab, _CHUNK), triton.cdiv(vocab, GROUP.value)
    highest, sums = empty(torch.float32, 2, num_rows, num_chunks)
    maxima, active = empty(torch.float32, num_rows, num_groups), empty(torch.int32, num_rows, num_groups)
    lists = empty(torch.int64, num_rows, LONGEST.value)
    _chunk_kernel[(num_rows, num_chunks)](
        logits, maxima, highest, sums, logits.stride(0), vocab, num_groups,
        HAS_TOP=num_top > 0, **_TILE, **pdl.options(),
    )  # fmt: skip
    _join_kernel[(num_rows,)](
        logits, token_ids, maxima, highest, sums, active, lists, chosen, top_ids, top_logprobs,
        logits.stride(0), vocab, num_groups, num_chunks, num_top, HAS_TOP=num_top > 0,
        GROUPS=triton.next_power_of_2(num_groups), CHUNKS=triton.next_power_of_2(num_chunks),
        **_TILE, **pdl.options(),
    )  # fmt: skip
    return chosen, top_ids, top_logprobs
