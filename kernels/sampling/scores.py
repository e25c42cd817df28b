# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device functions that the sampling kernels share, and the pass that scores every token.

A token and its score travel as one int64: the score's bits, ordered as the scores are, above the complement of the
id. So the maximum of such keys is the best token, and the lowest id among equals, in whatever order they are compared.
"""

import triton
import triton.language as tl

from kernels import pdl

NO_PARAMETERS, TEMPERATURE_ONLY, ALL_PARAMETERS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# As in the reference: both logarithms of the Gumbel transform stay finite.
_SMALLEST, _LARGEST = tl.constexpr(2.0**-33), tl.constexpr(1.0 - 2.0**-24)
_ID_MASK = tl.constexpr(0xFFFFFFFF)


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
    """int64 key of scores float32 and token ids int32."""
    return (float_key(score).to(tl.int64) << 32) | (token.to(tl.int64) ^ _ID_MASK)


@triton.jit
def packed_token(key):
    return (key & _ID_MASK) ^ _ID_MASK


@triton.jit
def packed_score(key):
    return key_float((key >> 32).to(tl.int32))


@triton.jit
def gumbel(seed, position, tokens):
    """Noise of the tokens int32 [n] of a row: see `kernels.sampling`."""
    c0 = tokens.to(tl.uint32)
    zero = c0 * 0
    bits, _, _, _ = tl.philox(seed, c0, zero + position.to(tl.uint32), zero, zero)
    uniform = tl.minimum(tl.maximum(tl.uint_to_uniform_float(bits), _SMALLEST), _LARGEST)
    return -tl.log(-tl.log(uniform))


@triton.jit
def is_filtered(top_k, top_p, min_p, vocab):
    """Whether any of the three filters can drop a token."""
    return ((top_k > 0) & (top_k < vocab)) | (top_p < 1.0) | (min_p > 0.0)


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
    row_stride,
    vocab,
    PARAMETERS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The best key of a chunk of a row, to keys [n, chunks]; scores of rows to be filtered have no noise yet."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    lanes = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_token = chunk * CHUNK + lanes
    pdl.wait(PDL)
    scale = 1.0
    is_drawn = False
    seed = tl.full((), 0, tl.int64)
    position = seed
    if PARAMETERS != NO_PARAMETERS:
        temperature = tl.load(temperature_ptr + row)
        is_drawn = temperature != 0.0
        scale = tl.where(is_drawn, temperature, 1.0)
        seed = tl.load(seeds_ptr + row)
        position = tl.load(positions_ptr + row)
    if PARAMETERS == ALL_PARAMETERS:
        filtered = is_filtered(
            tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row), vocab
        )
        is_drawn = is_drawn & (filtered == 0)
    for start in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, vocab), BLOCK):
        tokens = start + lanes
        x = tl.load(logits_ptr + row * row_stride + tokens, mask=tokens < vocab, other=float("-inf"))
        x = x.to(tl.float32)
        if PARAMETERS != NO_PARAMETERS:
            x = tl.div_rn(x, scale)
            if is_drawn:
                x = x + gumbel(seed, position, tokens)
        better = x > best
        best = tl.where(better, x, best)
        best_token = tl.where(better, tokens, best_token)
    key = tl.max(pack(best, best_token), axis=0)
    tl.store(keys_ptr + row * tl.num_programs(1) + chunk, key)


@triton.jit
def best_key(keys_ptr, row, num_chunks, CHUNKS: tl.constexpr):
    """The best of a row's keys."""
    chunks = tl.arange(0, CHUNKS)
    keys = tl.load(keys_ptr + row * num_chunks + chunks, mask=chunks < num_chunks, other=-(2**63))
    return tl.max(keys, axis=0)


@triton.jit
def pick_kernel(keys_ptr, out_ptr, num_chunks, CHUNKS: tl.constexpr, PDL: tl.constexpr):
    """Each row's best token of keys [n, chunks]."""
    row = tl.program_id(0).to(tl.int64)
    pdl.wait(PDL)
    tl.store(out_ptr + row, packed_token(best_key(keys_ptr, row, num_chunks, CHUNKS)))
