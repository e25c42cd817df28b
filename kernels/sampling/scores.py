# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device functions that the sampling kernels share, and the pass that scores every token.

A token and its score travel as one int64: the score's bits, ordered as the scores are, above the complement of the
id. So the maximum of such keys is the best token, and the lowest id among equals, in whatever order they are compared.

A row is read in tiles [SPANS, WIDTH]: a span is what one thread reads, so that sums over it stay in its registers.
"""

import triton
import triton.language as tl

from kernels import pdl
from kernels.sampling.noise import gumbel_tile

NO_PARAMETERS, TEMPERATURE_ONLY, ALL_PARAMETERS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
GROUP = tl.constexpr(64)
"""Tokens whose best logit `score_kernel` notes, for shortlists."""
UNDECIDED = tl.constexpr(-1)
_ID_MASK = tl.constexpr(0xFFFFFFFF)
# So that a logit of 0 stays 0 at any temperature.
_LARGEST_INVERSE = tl.constexpr(2.0**126)
_LOWEST_KEY = tl.constexpr(-(2**63))


@triton.jit
def float_key(x):
    """int32 in the order of the float32 x; both zeros give 0."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def key_float(key):
    """The float32 of an int32 key."""
    bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def pack(score, token):
    """int64 key of scores float32 and token ids."""
    return (float_key(score).to(tl.int64) << 32) | (token.to(tl.int64) ^ _ID_MASK)


@triton.jit
def packed_token(key):
    return (key & _ID_MASK) ^ _ID_MASK


@triton.jit
def packed_score(key):
    return key_float((key >> 32).to(tl.int32))


@triton.jit
def best_key(keys_ptr, row, num_chunks, CHUNKS: tl.constexpr):
    """The best of a row's keys [n, chunks]."""
    chunks = tl.arange(0, CHUNKS)
    keys = tl.load(keys_ptr + row * num_chunks + chunks, mask=chunks < num_chunks, other=_LOWEST_KEY)
    return tl.max(keys, axis=0)


@triton.jit
def load_tile(row_ptr, start, vocab, SPANS: tl.constexpr, WIDTH: tl.constexpr):
    """Logits [SPANS, WIDTH] from `start` on, -inf past the end, and their tokens int32."""
    tokens = start + tl.arange(0, SPANS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.load(row_ptr + tokens, mask=tokens < vocab, other=float("-inf")), tokens


@triton.jit
def inverse(temperature):
    """What logits are multiplied by, as in the reference; 1 at temperature 0."""
    divisor = tl.where(temperature == 0.0, 1.0, temperature)
    return tl.minimum(tl.div_rn(tl.full((), 1.0, tl.float32), divisor), _LARGEST_INVERSE)


@triton.jit
def scaled(logits, inverse_temperature):
    """Scores float32."""
    return logits.to(tl.float32) * inverse_temperature


@triton.jit
def best_of_tile(x, tokens):
    """Key of the best of scores [SPANS, WIDTH]."""
    return tl.max(tl.max(pack(x, tokens), axis=1), axis=0)


@triton.jit
def parameters(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab):
    """(1 / temperature, top_k or 0, top_p, min_p, whether the row is drawn from a filtered distribution)."""
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_k = tl.where((top_k > 0) & (top_k < vocab), top_k, 0)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    applies = (temperature != 0.0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0))
    return inverse(temperature), top_k, top_p, min_p, applies


@triton.jit
def store_group_maxima(span_maxima, maxima_ptr, start, vocab, SPANS: tl.constexpr, WIDTH: tl.constexpr):
    """Note the best logit of each GROUP tokens of a tile, given its spans' float32 [SPANS], among those of its row."""
    maxima = tl.max(tl.reshape(span_maxima, [SPANS * WIDTH // GROUP, GROUP // WIDTH]), axis=1)
    groups = start // GROUP + tl.arange(0, SPANS * WIDTH // GROUP)
    tl.store(maxima_ptr + groups, maxima, mask=groups * GROUP < vocab)


@triton.jit
def score_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    keys_ptr,
    maxima_ptr,
    out_ptr,
    row_stride,
    vocab,
    num_groups,
    chunk_size,
    PARAMETERS: tl.constexpr,
    SPANS: tl.constexpr,
    WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):
    """The best key of a chunk of a row, to keys [n, chunks]; scores of rows to be filtered have no noise yet.

    Of rows with top-k also the best logit of each group of tokens, to maxima [n, groups]; and all are undecided.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    row_ptr = logits_ptr + row * row_stride
    first = chunk * chunk_size
    best = tl.full((SPANS, WIDTH), float("-inf"), tl.float32)
    best_token = first + tl.arange(0, SPANS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    pdl.wait(PDL)
    scale = 1.0
    is_drawn = False
    wants_maxima = False
    seed = tl.full((), 0, tl.int64)
    position = seed
    if PARAMETERS != NO_PARAMETERS:
        temperature = tl.load(temperature_ptr + row)
        scale = inverse(temperature)
        is_drawn = temperature != 0.0
        seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
    if PARAMETERS == ALL_PARAMETERS:
        _, top_k, _, _, applies = parameters(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab)
        is_drawn = is_drawn & (applies == 0)
        wants_maxima = applies & (top_k > 0)
        if chunk == 0:
            tl.store(out_ptr + row, UNDECIDED)
    for start in range(first, min(first + chunk_size, vocab), SPANS * WIDTH):
        logits, tokens = load_tile(row_ptr, start, vocab, SPANS, WIDTH)
        x = scaled(logits, scale)
        if wants_maxima:
            span_maxima = tl.max(logits.to(tl.float32), axis=1)
            store_group_maxima(span_maxima, maxima_ptr + row * num_groups, start, vocab, SPANS, WIDTH)
        if is_drawn:
            x = x + gumbel_tile(seed, position, start, SPANS, WIDTH)
        better = x > best
        best = tl.where(better, x, best)
        best_token = tl.where(better, tokens, best_token)
    tl.store(keys_ptr + row * tl.num_programs(1) + chunk, best_of_tile(best, best_token))


@triton.jit
def pick_kernel(keys_ptr, out_ptr, num_chunks, CHUNKS: tl.constexpr, PDL: tl.constexpr):
    """Each row's best token of keys [n, chunks]."""
    row = tl.program_id(0).to(tl.int64)
    pdl.wait(PDL)
    tl.store(out_ptr + row, packed_token(best_key(keys_ptr, row, num_chunks, CHUNKS)))
