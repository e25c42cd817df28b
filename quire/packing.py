"""Integer and float arrays as packed little-endian bytes, as every message of the protocol carries them."""

import sys
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_INT32 = np.dtype("<i4")
_UINT32 = np.dtype("<u4")
_UINT64 = np.dtype("<u8")
_UINT8 = np.dtype("u1")
_FLOAT32 = np.dtype("<f4")


def pack_int32(values: Sequence[int] | NDArray[np.integer]) -> bytes:
    """Pack integers as int32. Raises OverflowError for a value that does not fit."""
    if isinstance(values, list) and sys.byteorder == "little":
        # The few of a delta: numpy would take ten times as long.
        return array("i", values).tobytes()
    return np.asarray(values, dtype=_INT32).tobytes()


def pack_uint32(values: Sequence[int] | NDArray[np.integer]) -> bytes:
    """Pack integers as uint32. Raises OverflowError for a value that does not fit."""
    return np.asarray(values, dtype=_UINT32).tobytes()


def pack_uint64(values: Sequence[int] | NDArray[np.integer]) -> bytes:
    """Pack integers as uint64. Raises OverflowError for a value that does not fit."""
    return np.asarray(values, dtype=_UINT64).tobytes()


def pack_uint8(values: Sequence[int] | NDArray[np.integer]) -> bytes:
    """Pack integers as uint8. Raises OverflowError for a value that does not fit."""
    return np.asarray(values, dtype=_UINT8).tobytes()


def pack_float32(values: Sequence[float] | NDArray[np.floating]) -> bytes:
    """Pack floats as float32."""
    return np.asarray(values, dtype=_FLOAT32).tobytes()


def unpack_int32(data: bytes) -> NDArray[np.int32]:
    """A read-only view, shape [len(data) / 4]. Raises ValueError if the length does not divide."""
    return np.frombuffer(data, dtype=_INT32)


def unpack_uint32(data: bytes) -> NDArray[np.uint32]:
    """A read-only view, shape [len(data) / 4]. Raises ValueError if the length does not divide."""
    return np.frombuffer(data, dtype=_UINT32)


def unpack_uint64(data: bytes) -> NDArray[np.uint64]:
    """A read-only view, shape [len(data) / 8]. Raises ValueError if the length does not divide."""
    return np.frombuffer(data, dtype=_UINT64)


def unpack_uint8(data: bytes) -> NDArray[np.uint8]:
    """A read-only view, shape [len(data)]."""
    return np.frombuffer(data, dtype=_UINT8)


def unpack_float32(data: bytes) -> NDArray[np.float32]:
    """A read-only view, shape [len(data) / 4]. Raises ValueError if the length does not divide."""
    return np.frombuffer(data, dtype=_FLOAT32)
