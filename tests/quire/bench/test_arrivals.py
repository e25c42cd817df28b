"""What a measurement makes of the messages that came."""

import numpy as np
import pytest

from quire.bench.token_client import Arrivals, collect, token_request
from quire.errors import Internal, Overloaded
from quire.packing import pack_int32, pack_uint32
from quire.v1 import scheduler_pb2, types_pb2

REQUESTS = [
    token_request(str(number), [1, 2], types_pb2.SamplingParams(max_tokens=count), cache_salt="")
    for number, count in enumerate((3, 1))
]


def batch(handles: list[int], counts: list[int] | None, **ends: int) -> scheduler_pb2.TokenBatch:
    total = sum(counts) if counts else len(handles)
    return scheduler_pb2.TokenBatch(
        handles=pack_uint32(handles),
        num_tokens=pack_uint32(counts) if counts else b"",
        token_ids=pack_int32([7] * total),
        ends=[
            scheduler_pb2.SequenceEnd(
                handle=int(name[1:]), usage=types_pb2.Usage(completion_tokens=completion_tokens)
            )
            for name, completion_tokens in ends.items()
        ],
    )


@pytest.fixture
def arrivals() -> Arrivals:
    batches = [(10.5, batch([0, 1], None, r1=1)), (11.5, batch([0], [2], r0=3))]
    return collect(batches, 10.0, REQUESTS)


def test_tokens_are_counted_by_request_and_time(arrivals: Arrivals) -> None:
    assert arrivals.total_s == 1.5
    assert arrivals.num_tokens.sum() == 4
    np.testing.assert_allclose(arrivals.first_token_s(), [0.5, 0.5])
    np.testing.assert_allclose(arrivals.last_token_s(), [1.5, 0.5])


def test_gaps_are_between_messages_of_one_request(arrivals: Arrivals) -> None:
    np.testing.assert_allclose(arrivals.gaps_s(), [1.0])


def test_a_missing_token_is_an_error_and_no_figure() -> None:
    batches = [(10.5, batch([0, 1], None, r0=3, r1=1))]
    with pytest.raises(Internal, match="0 got 1 tokens"):
        collect(batches, 10.0, REQUESTS)


def test_a_refusal_is_raised_as_what_it_is() -> None:
    error = Overloaded("full").to_proto()
    refused = scheduler_pb2.TokenBatch(ends=[scheduler_pb2.SequenceEnd(handle=0, error=error)])
    with pytest.raises(Overloaded, match="full"):
        collect([(10.5, refused)], 10.0, REQUESTS)
