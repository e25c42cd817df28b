"""A StepCommand's packed columns, unpacked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quire.errors import InvalidRequest
from quire.packing import unpack_int32, unpack_uint32
from quire.v1 import worker_pb2


@dataclass(frozen=True, slots=True)
class Delta:
    """What a command says of rows and blocks; nothing but its lengths is checked yet."""

    remove_rows: list[int]
    append_rows: NDArray[np.int64]
    append_counts: NDArray[np.int64]
    append_block_ids: NDArray[np.int32]
    prefill_rows: list[int]
    prefill_counts: list[int]


def unpack_delta(command: worker_pb2.StepCommand) -> Delta:
    """Raises InvalidRequest where bytes are no array."""
    try:
        return Delta(
            remove_rows=unpack_uint32(command.remove_rows).tolist(),
            append_rows=unpack_uint32(command.append_rows).astype(np.int64),
            append_counts=unpack_uint32(command.append_num_blocks).astype(np.int64),
            append_block_ids=unpack_int32(command.append_block_ids),
            prefill_rows=unpack_uint32(command.prefill_rows).tolist(),
            prefill_counts=unpack_uint32(command.prefill_num_tokens).tolist(),
        )
    except ValueError:
        raise InvalidRequest("an array's length does not divide") from None
