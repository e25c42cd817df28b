# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Gumbel noise of tokens, -log(-log(1 - u)) of the numbers u that `philox.token_uniforms` gives them.

The noise of a token that wins comes from a small u, where a fast logarithm of 1 - u would have no digits left: so the
inner one is a series there. What is left of the errors is some 1e-6.
"""

import triton
import triton.language as tl

_LN2 = tl.constexpr(0.6931471805599453)
_LARGEST = tl.constexpr(1.0 - 2.0**-24)
_SERIES_UP_TO = tl.constexpr(0.125)
# The interpreter has no assembly.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _log2(x):
    """Of normal float32 > 0; the error is 2**-22, absolute in (0.5, 2) and relative elsewhere."""
    if _INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _gumbel(bits):
    """Noise float32 of random uint32."""
    u = tl.minimum(tl.fma(bits.to(tl.float32), 2.0**-32, 2.0**-33), _LARGEST)
    # -log(1 - u) = u + u**2 / 2 + u**3 / 3 + ...; the next term is below 1e-6 of the first.
    series = u * (1.0 + u * (0.5 + u * (1 / 3 + u * (0.25 + u * (0.2 + u * (1 / 6))))))
    exponential = tl.where(u < _SERIES_UP_TO, series, _log2(1.0 - u) * -_LN2)
    return _log2(exponential) * -_LN2


@triton.jit
def _words(seed, position, quads):
    """The four words, each uint32 of the shape of `quads`, of the tokens from 4 * quads on."""
    c0 = quads.to(tl.uint32)
    zero = c0 * 0
    return tl.philox(seed, c0, zero + position.to(tl.uint32), zero, zero)


@triton.jit
def gumbel_tile(seed, position, start, SPANS: tl.constexpr, WIDTH: tl.constexpr):
    """Noise [SPANS, WIDTH] of the tokens from `start` on, a multiple of 4: a call of Philox for four of them."""
    spans, quads = tl.arange(0, SPANS)[:, None], tl.arange(0, WIDTH // 4)[None, :]
    a, b, c, d = _words(seed, position, start // 4 + spans * (WIDTH // 4) + quads)
    return _gumbel(tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [SPANS, WIDTH]))


@triton.jit
def gumbel_of(seed, position, tokens):
    """Noise of any tokens, int32."""
    a, b, c, d = _words(seed, position, tokens // 4)
    word = tokens % 4
    return _gumbel(tl.where(word < 2, tl.where(word == 0, a, b), tl.where(word == 2, c, d)))
