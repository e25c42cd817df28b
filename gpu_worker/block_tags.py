"""Which command assigned each block last: what makes entries of a prefix index checkable after a scheduler's death."""

import numpy as np
from numpy.typing import NDArray

from quire.packing import unpack_int32
from quire.v1 import worker_pb2


class BlockTags:
    """(lease epoch, step id) of the last command that gave each block to a row to be written, [num_blocks]."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.lease_epochs: NDArray[np.uint64] = np.zeros(num_blocks, np.uint64)
        self.step_ids: NDArray[np.uint64] = np.zeros(num_blocks, np.uint64)
        self._block_size = block_size

    def note(self, command: worker_pb2.StepCommand) -> None:
        """A command is about to be executed. What is wrong with it is left to its own checks."""
        try:
            columns = [
                unpack_int32(command.append_block_ids),
                *(
                    unpack_int32(added.block_ids)[added.num_computed_tokens // self._block_size :]
                    for added in command.add_rows
                ),
            ]
        except ValueError:
            return
        blocks = np.concatenate(columns)
        if len(blocks) and int(blocks.min()) >= 0 and int(blocks.max()) < len(self.step_ids):
            self.lease_epochs[blocks] = command.lease_epoch
            self.step_ids[blocks] = command.step_id
