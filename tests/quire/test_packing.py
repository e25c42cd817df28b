"""Packed arrays round-trip and refuse what does not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire import packing


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_int32_round_trips_little_endian(values: list[int]) -> None:
    data = packing.pack_int32(values)
    assert data == b"".join(value.to_bytes(4, "little", signed=True) for value in values)
    assert packing.unpack_int32(data).tolist() == values


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_uint32_round_trips(values: list[int]) -> None:
    assert packing.unpack_uint32(packing.pack_uint32(values)).tolist() == values


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_float32_round_trips(values: list[float]) -> None:
    assert packing.unpack_float32(packing.pack_float32(values)).tolist() == values


@pytest.mark.parametrize(
    ("pack", "value"),
    [(packing.pack_int32, 2**31), (packing.pack_uint32, -1), (packing.pack_uint8, 256)],
)
def test_a_value_that_does_not_fit_is_an_error_not_a_wrap(pack, value: int) -> None:
    with pytest.raises(OverflowError):
        pack([value])


def test_a_torn_array_is_an_error() -> None:
    with pytest.raises(ValueError, match="buffer size"):
        packing.unpack_int32(b"abc")


def test_views_cannot_change_the_message() -> None:
    view = packing.unpack_uint8(b"abc")
    with pytest.raises(ValueError, match="read-only"):
        view[0] = np.uint8(1)
