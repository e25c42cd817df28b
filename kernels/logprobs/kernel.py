# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: each chunk of a row gives its best few tokens and the sum of its exponentials; one program joins them.

Among equals the lower id comes first. More than MAX_TOP likeliest tokens are left to the reference.
"""

import torch
import triton
import triton.language as tl

from kernels import pdl
from kernels.logprobs import reference
from kernels.sampling.scores import pack, packed_score, packed_token

MAX_TOP = 20
_LOWEST_KEY = tl.constexpr(-(2**63))


@triton.jit
def _chunk_kernel(
    logits_ptr,
    keys_ptr,
    highest_ptr,
    sums_ptr,
    row_stride,
    vocab,
    NUM_TOP: tl.constexpr,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """keys int64 [n, chunks, NUM_TOP], best first; highest logit and sum of exp(logit - highest) [n, chunks]."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    pdl.wait(PDL)
    x = tl.load(logits_ptr + row * row_stride + tokens, mask=tokens < vocab, other=float("-inf"))
    x = x.to(tl.float32)
    highest = tl.max(x, axis=0)
    at = row * tl.num_programs(1) + chunk
    tl.store(highest_ptr + at, highest)
    # A chunk of -inf alone adds nothing.
    tl.store(sums_ptr + at, tl.sum(tl.exp(x - tl.where(highest == float("-inf"), 0.0, highest)), axis=0))
    keys = pack(x, tokens)
    for rank in tl.static_range(NUM_TOP):
        best = tl.max(keys, axis=0)
        tl.store(keys_ptr + at * NUM_TOP + rank, best)
        keys = tl.where(keys == best, _LOWEST_KEY, keys)


@triton.jit
def _join_kernel(
    logits_ptr,
    token_ids_ptr,
    keys_ptr,
    highest_ptr,
    sums_ptr,
    chosen_ptr,
    top_ids_ptr,
    top_logprobs_ptr,
    row_stride,
    num_chunks,
    NUM_TOP: tl.constexpr,
    CHUNKS: tl.constexpr,
    KEYS: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, CHUNKS)
    mask = chunks < num_chunks
    pdl.wait(PDL)
    highests = tl.load(highest_ptr + row * num_chunks + chunks, mask=mask, other=float("-inf"))
    sums = tl.load(sums_ptr + row * num_chunks + chunks, mask=mask, other=0.0)
    highest = tl.max(highests, axis=0)
    log_total = highest + tl.log(tl.sum(sums * tl.exp(highests - highest), axis=0))
    chosen = tl.load(logits_ptr + row * row_stride + tl.load(token_ids_ptr + row)).to(tl.float32)
    tl.store(chosen_ptr + row, chosen - log_total)
    if NUM_TOP > 0:
        entries = tl.arange(0, KEYS)
        num_keys = num_chunks * NUM_TOP
        keys = tl.load(keys_ptr + row * num_keys + entries, mask=entries < num_keys, other=_LOWEST_KEY)
        for rank in tl.static_range(NUM_TOP):
            best = tl.max(keys, axis=0)
            tl.store(top_ids_ptr + row * NUM_TOP + rank, packed_token(best))
            tl.store(top_logprobs_ptr + row * NUM_TOP + rank, packed_score(best) - log_total)
            keys = tl.where(keys == best, _LOWEST_KEY, keys)


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
    device = logits.device
    chosen = torch.empty((num_rows,), dtype=torch.float32, device=device)
    top_ids = torch.empty((num_rows, num_top), dtype=torch.int64, device=device)
    top_logprobs = torch.empty((num_rows, num_top), dtype=torch.float32, device=device)
    if num_rows == 0:
        return chosen, top_ids, top_logprobs
    chunk = 2048 if num_rows <= 16 else 4096
    num_chunks = triton.cdiv(vocab, chunk)
    keys = torch.empty((num_rows, num_chunks, num_top), dtype=torch.int64, device=device)
    highest, sums = torch.empty((2, num_rows, num_chunks), dtype=torch.float32, device=device)
    _chunk_kernel[(num_rows, num_chunks)](
        logits, keys, highest, sums, logits.stride(0), vocab,
        NUM_TOP=num_top, CHUNK=chunk, num_warps=8, **pdl.options(),
    )  # fmt: skip
    _join_kernel[(num_rows,)](
        logits, token_ids, keys, highest, sums, chosen, top_ids, top_logprobs, logits.stride(0), num_chunks,
        NUM_TOP=num_top, CHUNKS=triton.next_power_of_2(num_chunks),
        KEYS=triton.next_power_of_2(max(1, num_chunks * num_top)), num_warps=4, **pdl.options(),
    )  # fmt: skip
    return chosen, top_ids, top_logprobs
