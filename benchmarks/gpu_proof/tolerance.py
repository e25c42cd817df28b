"""How far log-probabilities may be off when numbers are kept in few bits: from the format, not from what was seen.

Rounding to a format with `p` bits of significand errs by at most u = 2^-p of a number, and by u / sqrt(3) in the root
of the mean square (bfloat16: p = 8, u = 0.0039, rms 0.0023). Products are summed in float32, which is finer by 2^16 and
left out. A layer rounds the stream that it adds to twice, and each of its two branches five times on the way
(attention: normed input, q k v, rotation, softmax weights, output; feed-forward: normed input, gate, up, their product,
output). A branch is at most as large as the stream, so with errors that are independent the stream has, after L
layers, a relative error of

    e = u / sqrt(3) * sqrt(12 L + 2)

where the 2 are the final norm and the embedding. A logit is a row w of the head times the stream h of d numbers; for an
error in no particular direction it errs by s = e |h| |w| / sqrt(d) (rms), and is itself rounded once more, by at most
u times its size. A log-probability is a difference of two such numbers, so its error is sqrt(2) s (rms). That is held
as it is, with a factor of 2 for the mean square. Single errors are bound by six times the rms and the last rounding,
but for one in a hundred: the sizes above are means over positions, and at some a model makes more of an error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu_proof.reference import Reference

_ROUNDINGS_PER_LAYER = 12
_SIGMAS = 6.0
_BITS = {"bfloat16": 8, "float16": 11}


@dataclass(frozen=True)
class Tolerance:
    """Of log-probabilities, natural logarithm."""

    rms: float
    """Predicted root of the mean square."""
    largest: float
    """What 99 % of the errors may not pass."""


@torch.inference_mode()
def rounding_tolerance(reference: Reference, sample: Sequence[int], dtype: str) -> Tolerance:
    """For the reference's model kept in `dtype`, with hidden states and logits as large as over the tokens `sample`."""
    unit = 2.0 ** -_BITS[dtype]
    model = reference.model
    ids = torch.tensor([list(sample)], device=reference.device)
    hidden = model.model(ids, use_cache=False).last_hidden_state[0]
    head = model.get_output_embeddings().weight
    logits = hidden @ head.T
    relative = unit / math.sqrt(3) * math.sqrt(_ROUNDINGS_PER_LAYER * model.config.num_hidden_layers + 2)
    lengths = hidden.norm(dim=-1).mean() * head.norm(dim=-1).mean() / math.sqrt(hidden.shape[1])
    rms = math.sqrt(2) * relative * float(lengths)
    return Tolerance(rms, _SIGMAS * rms + unit * float(logits.abs().max()))
