"""Sampling parameters of the offline API, as the services get them."""

import subprocess
import sys

import pytest

from quire import SamplingParams
from quire.errors import InvalidRequest
from quire.packing import unpack_float32, unpack_int32
from quire.v1 import tokenizer_pb2


def filled(params: SamplingParams) -> tokenizer_pb2.TextRequest:
    request = tokenizer_pb2.TextRequest()
    params.fill(request)
    return request


def test_every_parameter_reaches_the_request() -> None:
    request = filled(
        SamplingParams(
            n=2, temperature=0.5, top_k=3, top_p=0.75, min_p=0.25, repetition_penalty=1.5,
            frequency_penalty=0.5, presence_penalty=0.25, logit_bias={7: -1.0}, seed=2**63, max_tokens=9,
            min_tokens=1, stop=["a", "b"], stop_token_ids=[4], include_stop_str_in_output=True, ignore_eos=True,
            skip_special_tokens=False, logprobs=0,
        )
    )  # fmt: skip
    sampling = request.sampling
    assert (request.n, list(request.stop)) == (2, ["a", "b"])
    assert request.include_stop_str_in_output
    assert not request.skip_special_tokens
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 3, 0.75, 0.25)
    assert (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (
        *(1.5, 0.5, 0.25),
    )
    assert unpack_int32(sampling.logit_bias_token_ids).tolist() == [7]
    assert unpack_float32(sampling.logit_bias_values).tolist() == [-1.0]
    assert (sampling.seed, sampling.max_tokens, sampling.min_tokens) == (2**63, 9, 1)
    assert unpack_int32(sampling.stop_token_ids).tolist() == [4]
    assert sampling.ignore_eos
    assert sampling.HasField("logprobs")


def test_what_is_left_out_stays_absent() -> None:
    request = filled(SamplingParams())
    assert not any(request.sampling.HasField(name) for name in ("seed", "max_tokens", "logprobs"))


def test_one_stop_string_is_not_taken_apart() -> None:
    assert list(filled(SamplingParams(stop="end")).stop) == ["end"]


@pytest.mark.parametrize(
    "params", [{"max_tokens": -1}, {"seed": -1}, {"n": 2**40}, {"logit_bias": {2**40: 1.0}}]
)
def test_a_number_that_does_not_fit_is_the_caller_s_mistake(params: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="sampling parameters"):
        filled(SamplingParams(**params))  # type: ignore[arg-type]


def test_importing_quire_imports_nothing_heavy() -> None:
    code = "import sys, quire; print([name for name in ('grpc', 'numpy', 'tqdm', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
