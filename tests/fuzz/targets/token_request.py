"""A request as the scheduler gets it: the bytes of a TokenRequest, checked wholly."""

from google.protobuf.message import DecodeError

from quire.errors import InvalidRequest
from quire.packing import pack_float32, pack_int32, unpack_int32
from quire.v1 import scheduler_pb2, types_pb2
from scheduler_svc.core.abilities import Abilities
from scheduler_svc.core.intake import make_request
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.tenants import Tenant
from scheduler_svc.core.validation import check_policy

_ABILITIES = Abilities(
    model=types_pb2.ModelDescription(name="m", revision="r", vocab_size=100, max_model_len=64),
    block_size=16,
    eos_token_ids=frozenset({2}),
    max_total_tokens=50,
    max_logprobs=5,
    capabilities=frozenset(),
)
_LIMITS = Limits(max_sequences_per_request=4)


def seeds() -> list[bytes]:
    """A small request, and one with every field."""
    sampling = types_pb2.SamplingParams(
        temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, seed=7, repetition_penalty=1.1, frequency_penalty=0.5,
        presence_penalty=-0.5, logit_bias_token_ids=pack_int32([3]), logit_bias_values=pack_float32([1.5]),
        logprobs=2, max_tokens=8, min_tokens=1, stop_token_ids=pack_int32([5]), ignore_eos=True,
    )  # fmt: skip
    full = scheduler_pb2.TokenRequest(
        request_id="r", ledger_id="l", prompt_token_ids=pack_int32([1, 2, 3]), sampling=sampling, n=2, tenant="t",
        tenant_policy=types_pb2.TenantPolicy(weight=1, kv_ceiling=1), priority=-1, timeout_s=5.0, cache_salt="s",
        public_prefix_tokens=2, trace=types_pb2.TraceContext(traceparent="00-1-1-01"),
        resumed=[scheduler_pb2.ResumedSequence(sequence=1, token_ids=pack_int32([4]))],
    )  # fmt: skip
    small = scheduler_pb2.TokenRequest(prompt_token_ids=pack_int32([1]))
    return [message.SerializeToString() for message in (small, full)]


def run(data: bytes) -> None:
    """It becomes sequences within every limit, or is refused by name."""
    try:
        asked = scheduler_pb2.TokenRequest.FromString(data)
    except DecodeError:
        return
    try:
        check_policy(asked.tenant_policy)
        request = make_request(1, 1, asked, Tenant(asked.tenant, 0), 7, 100.0, 1, _ABILITIES, _LIMITS)
    except InvalidRequest as error:
        assert error.message
        assert error.param
        error.to_proto()
        return
    assert 1 <= len(request.sequences) == request.num_unfinished <= 4
    for sequence in request.sequences:
        assert 0 < sequence.num_prompt_tokens <= len(sequence.token_ids) <= sequence.max_total_tokens <= 50
        assert all(0 <= token < 100 for token in sequence.token_ids)
        assert unpack_int32(sequence.sampling.stop_token_ids).tolist() == sorted(sequence.stop_token_ids)
        sequence.sampling.SerializeToString()
