"""What a request must be for the scheduler to take it; errors name fields in the words of the OpenAI API."""

from array import array
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from quire.errors import InvalidRequest
from quire.packing import pack_int32, unpack_float32, unpack_int32
from quire.v1 import scheduler_pb2, types_pb2
from scheduler_svc.core.abilities import Abilities
from scheduler_svc.core.limits import Limits

_MAX_REQUEST_ID = 256
MAX_LEDGER_ID = 64
_MAX_STOP_TOKEN_IDS = 256
_MAX_LOGIT_BIASES = 1024
_SEED_STEP = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """A sequence to be made: what `Sequence` is built from."""

    token_ids: "array[int]"
    max_total_tokens: int
    sampling: types_pb2.SamplingParams
    stop_token_ids: frozenset[int]


def sequence_seed(seed: int, index: int) -> int:
    """Seed of the request's sequence `index`: sequence 0 has the request's own.

    Steps of the golden ratio (as SplitMix64's, Steele et al. 2014), so that seeds of neighbours, and of
    requests with neighbouring seeds, stay apart.
    """
    return (seed + index * _SEED_STEP) % 2**64


def plan_sequences(
    request: scheduler_pb2.TokenRequest, seed: int, abilities: Abilities, limits: Limits
) -> tuple[int, list[SequencePlan]]:
    """Check a request wholly; return its number of prompt tokens and its sequences.

    `seed` is used where the request has none. Raises InvalidRequest.
    """
    vocab_size = abilities.model.vocab_size
    _check_length("request_id", request.request_id, _MAX_REQUEST_ID)
    _check_length("ledger_id", request.ledger_id, MAX_LEDGER_ID)
    prompt = _token_ids(request.prompt_token_ids, "prompt", vocab_size)
    if len(prompt) == 0:
        raise InvalidRequest("the prompt is empty: it must have at least one token", param="prompt")
    n = request.n or 1
    if n > limits.max_sequences_per_request:
        raise InvalidRequest(f"n is {n}, at most {limits.max_sequences_per_request} are allowed", param="n")
    if request.HasField("timeout_s") and not request.timeout_s > 0.0:
        raise InvalidRequest(f"timeout is {request.timeout_s}, must be above 0", param="timeout")
    max_total_tokens = _max_total_tokens(request, len(prompt), abilities)
    sampling = _checked_sampling(request.sampling, abilities)
    if sampling.HasField("seed"):
        seed = sampling.seed
    stop_token_ids = _stop_token_ids(request.sampling, abilities)
    sampling.stop_token_ids = pack_int32(sorted(stop_token_ids))
    resumed = _resumed(request, n, max_total_tokens - len(prompt), vocab_size)
    plans = []
    for index in range(n):
        own = types_pb2.SamplingParams()
        own.CopyFrom(sampling)
        own.seed = sequence_seed(seed, index)
        token_ids = array("i", prompt.tobytes() + resumed.get(index, b""))
        plans.append(SequencePlan(token_ids, max_total_tokens, own, stop_token_ids))
    return len(prompt), plans


def check_policy(policy: types_pb2.TenantPolicy) -> None:
    """Raise InvalidRequest unless the policy's numbers make sense."""
    _check_range("weight", policy.weight, 0.0)
    _check_range("kv_floor", policy.kv_floor, 0.0, 1.0)
    _check_range("kv_ceiling", policy.kv_ceiling, 0.0, 1.0)


def _check_length(name: str, value: str, limit: int) -> None:
    if len(value) > limit:
        raise InvalidRequest(f"{name} has {len(value)} characters, at most {limit} are allowed", param=name)


def _max_total_tokens(
    request: scheduler_pb2.TokenRequest, num_prompt_tokens: int, abilities: Abilities
) -> int:
    limit = abilities.max_total_tokens
    if num_prompt_tokens >= limit:
        raise InvalidRequest(
            f"the prompt has {num_prompt_tokens} tokens; at most {limit} tokens of prompt and output together "
            "are taken",
            param="prompt",
        )
    sampling = request.sampling
    if not sampling.HasField("max_tokens"):
        return limit
    if sampling.max_tokens == 0:
        raise InvalidRequest("max_tokens is 0, must be at least 1", param="max_tokens")
    # Asking for more than there is room for is no mistake: it is how many clients say "as many as there can be".
    return min(limit, num_prompt_tokens + sampling.max_tokens)


def _checked_sampling(given: types_pb2.SamplingParams, abilities: Abilities) -> types_pb2.SamplingParams:
    """A copy for the worker: ranges checked, `max_tokens` and `ignore_eos` left out (they are folded in)."""
    _check_range("temperature", given.temperature, 0.0)
    _check_range("min_p", given.min_p, 0.0, 1.0)
    _check_range("frequency_penalty", given.frequency_penalty, -2.0, 2.0)
    _check_range("presence_penalty", given.presence_penalty, -2.0, 2.0)
    if given.HasField("top_p"):
        _check_range("top_p", given.top_p, 0.0, 1.0, above=True)
    if given.HasField("repetition_penalty"):
        _check_range("repetition_penalty", given.repetition_penalty, 0.0, above=True)
    if given.top_k < 0:
        raise InvalidRequest(f"top_k is {given.top_k}, must be 0 (all) or more", param="top_k")
    if given.HasField("logprobs") and given.logprobs > abilities.max_logprobs:
        raise InvalidRequest(
            f"{given.logprobs} log-probabilities per token asked for, at most {abilities.max_logprobs} given",
            param="logprobs",
        )
    if given.HasField("max_tokens") and given.min_tokens > given.max_tokens:
        raise InvalidRequest(
            f"min_tokens is {given.min_tokens}, more than max_tokens, {given.max_tokens}", param="min_tokens"
        )
    if given.HasField("grammar") and "grammar" not in abilities.capabilities:
        raise InvalidRequest("structured output is not available with this worker", param="response_format")
    _check_logit_bias(given, abilities.model.vocab_size)
    sampling = types_pb2.SamplingParams()
    sampling.CopyFrom(given)
    sampling.ClearField("max_tokens")
    sampling.ClearField("ignore_eos")
    return sampling


def _check_range(
    name: str, value: float, low: float, high: float | None = None, *, above: bool = False
) -> None:
    """Raise unless low <= value <= high (low < value, with `above`) and value is finite."""
    if isfinite(value) and (value > low if above else value >= low) and (high is None or value <= high):
        return
    bound = f"above {low:g}" if above else f"at least {low:g}"
    if high is not None:
        bound += f" and at most {high:g}"
    raise InvalidRequest(f"{name} is {value:g}, must be {bound}", param=name)


def _check_logit_bias(sampling: types_pb2.SamplingParams, vocab_size: int) -> None:
    if not sampling.logit_bias_token_ids and not sampling.logit_bias_values:
        return
    token_ids = _token_ids(sampling.logit_bias_token_ids, "logit_bias", vocab_size)
    try:
        values = unpack_float32(sampling.logit_bias_values)
    except ValueError:
        raise InvalidRequest("logit_bias values are not packed float32", param="logit_bias") from None
    if len(token_ids) != len(values) or len(values) > _MAX_LOGIT_BIASES:
        raise InvalidRequest(
            f"logit_bias has {len(token_ids)} tokens and {len(values)} values: their numbers must be equal, "
            f"and at most {_MAX_LOGIT_BIASES}",
            param="logit_bias",
        )
    if not bool(np.isfinite(values).all()):
        raise InvalidRequest("logit_bias has a value that is not finite", param="logit_bias")


def _stop_token_ids(sampling: types_pb2.SamplingParams, abilities: Abilities) -> frozenset[int]:
    given = _token_ids(sampling.stop_token_ids, "stop_token_ids", abilities.model.vocab_size)
    if len(given) > _MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(
            f"{len(given)} stop_token_ids, at most {_MAX_STOP_TOKEN_IDS} are allowed", param="stop_token_ids"
        )
    stop_token_ids = frozenset(given.tolist())
    return stop_token_ids if sampling.ignore_eos else stop_token_ids | abilities.eos_token_ids


def _resumed(
    request: scheduler_pb2.TokenRequest, n: int, max_tokens: int, vocab_size: int
) -> dict[int, bytes]:
    """Tokens so far, by sequence index, packed int32."""
    resumed: dict[int, bytes] = {}
    for entry in request.resumed:
        if entry.sequence >= n or entry.sequence in resumed:
            raise InvalidRequest(
                f"resumed sequence {entry.sequence} is not one of {n}, or twice", param="resumed"
            )
        tokens = _token_ids(entry.token_ids, "resumed", vocab_size)
        if len(tokens) > max_tokens:
            raise InvalidRequest(
                f"a resumed sequence has {len(tokens)} tokens, more than its limit of {max_tokens}",
                param="resumed",
            )
        resumed[entry.sequence] = tokens.tobytes()
    return resumed


def _token_ids(data: bytes, param: str, vocab_size: int) -> NDArray[np.int32]:
    try:
        token_ids = unpack_int32(data)
    except ValueError:
        raise InvalidRequest(f"{param}: {len(data)} bytes are not packed int32", param=param) from None
    # One pass: what is below 0 is beyond any vocabulary without its sign.
    if len(token_ids) and int(np.maximum.reduce(token_ids.view(np.uint32))) >= vocab_size:
        bad = (token_ids < 0) | (token_ids >= vocab_size)
        first = int(token_ids[bad][0])
        raise InvalidRequest(f"{param}: token id {first} is outside 0 .. {vocab_size - 1}", param=param)
    return token_ids
