"""A request is taken whole or refused with the field at fault."""

from math import inf, nan

import pytest

from quire.errors import InvalidRequest
from quire.packing import pack_float32, pack_int32, unpack_int32
from quire.v1 import scheduler_pb2, types_pb2
from scheduler_svc.core.abilities import Abilities
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.validation import SequencePlan, plan_sequences, sequence_seed

ABILITIES = Abilities(
    model=types_pb2.ModelDescription(name="m", vocab_size=100, max_model_len=64),
    block_size=16,
    eos_token_ids=frozenset({2}),
    max_total_tokens=50,
    max_logprobs=5,
    capabilities=frozenset(),
)


def plan(prompt: list[int] | bytes = b"\1\0\0\0", **fields: object) -> tuple[int, list[SequencePlan]]:
    """Fields of the request, and of its sampling parameters, under their own names."""
    known = types_pb2.SamplingParams.DESCRIPTOR.fields_by_name
    sampling = {name: value for name, value in fields.items() if name in known}
    own = {name: value for name, value in fields.items() if name not in known}
    request = scheduler_pb2.TokenRequest(
        prompt_token_ids=prompt if isinstance(prompt, bytes) else pack_int32(prompt),
        sampling=types_pb2.SamplingParams(**sampling),  # type: ignore[arg-type]
        **own,  # type: ignore[arg-type]
    )
    return plan_sequences(request, 7, ABILITIES, Limits(max_sequences_per_request=4))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": b"\1\0\0"}, "prompt"),
        ({"prompt": [100]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1] * 50}, "prompt"),
        ({"n": 5}, "n"),
        ({"timeout_s": 0.0}, "timeout"),
        ({"timeout_s": nan}, "timeout"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": nan}, "temperature"),
        ({"temperature": inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": nan}, "presence_penalty"),
        ({"logprobs": 6}, "logprobs"),
        ({"stop_token_ids": pack_int32([100])}, "stop_token_ids"),
        ({"stop_token_ids": pack_int32([1] * 257)}, "stop_token_ids"),
        ({"logit_bias_token_ids": pack_int32([1])}, "logit_bias"),
        ({"logit_bias_token_ids": pack_int32([1]), "logit_bias_values": pack_float32([nan])}, "logit_bias"),
        ({"logit_bias_token_ids": pack_int32([100]), "logit_bias_values": pack_float32([1])}, "logit_bias"),
        ({"logit_bias_values": b"\1"}, "logit_bias"),
        ({"grammar": types_pb2.Grammar(regex="a")}, "response_format"),
        ({"resumed": [scheduler_pb2.ResumedSequence(sequence=1)]}, "resumed"),
        ({"resumed": [scheduler_pb2.ResumedSequence()] * 2}, "resumed"),
        ({"resumed": [scheduler_pb2.ResumedSequence(token_ids=pack_int32([1] * 50))]}, "resumed"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan(**fields)  # type: ignore[arg-type]
    assert caught.value.param == param


def test_the_worker_gets_limits_and_stop_tokens_folded_in() -> None:
    _, (only,) = plan([1, 5], max_tokens=7, stop_token_ids=pack_int32([9]))
    assert only.max_total_tokens == 9
    assert only.stop_token_ids == {2, 9}
    assert unpack_int32(only.sampling.stop_token_ids).tolist() == [2, 9]
    assert not only.sampling.HasField("max_tokens")


def test_ignore_eos_leaves_only_the_asked_stop_tokens() -> None:
    _, (only,) = plan(ignore_eos=True, stop_token_ids=pack_int32([9]))
    assert only.stop_token_ids == {9}
    assert not only.sampling.ignore_eos


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 10**9}])
def test_without_a_limit_that_binds_the_context_is_filled(fields: dict[str, object]) -> None:
    _, (only,) = plan([1], **fields)
    assert only.max_total_tokens == 50


def test_sequences_draw_from_different_streams_and_the_first_from_the_request_s_own() -> None:
    _, plans = plan(n=3, seed=11)
    seeds = [item.sampling.seed for item in plans]
    assert seeds == [sequence_seed(11, index) for index in range(3)]
    assert seeds[0] == 11
    assert len(set(seeds)) == 3


def test_an_asked_seed_is_used_even_if_it_is_zero() -> None:
    request = scheduler_pb2.TokenRequest(
        prompt_token_ids=pack_int32([1]), sampling=types_pb2.SamplingParams(seed=0)
    )
    _, (only,) = plan_sequences(request, 99, ABILITIES, Limits())
    assert only.sampling.seed == 0
