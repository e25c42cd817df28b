"""Errors keep their kind, message, param and waiting time across a process boundary."""

import pytest

from quire import errors
from quire.v1 import types_pb2

KINDS = (
    errors.InvalidRequest,
    errors.NotFound,
    errors.Overloaded,
    errors.DeadlineExceeded,
    errors.NotReady,
    errors.Cancelled,
    errors.Internal,
)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_wire(kind: type[errors.QuireError]) -> None:
    sent = kind("what was wrong", param="top_p", retry_after_s=1.5)
    message = types_pb2.Error.FromString(sent.to_proto().SerializeToString())
    received = errors.from_proto(message)
    assert type(received) is kind
    assert (received.message, received.param, received.retry_after_s) == ("what was wrong", "top_p", 1.5)


def test_every_code_of_the_contract_has_an_exception() -> None:
    assert {kind.code for kind in KINDS} == set(types_pb2.ErrorCode.values()) - {0}


def test_no_waiting_time_is_not_zero_waiting_time() -> None:
    assert errors.from_proto(errors.Overloaded("full").to_proto()).retry_after_s is None
