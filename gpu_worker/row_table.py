"""The row table: what a sequence is to the device, one row each, kept from the command that adds it to its removal.

Columns named here are tensors on the device, [max_rows] unless said otherwise, and a step reads and writes them
there: the next step's input token never passes through the host. The host mirrors only what commands determine
without looking at tokens: which rows are in use, how long their prompts and block tables are, and how many tokens
they will have at most.
"""

from collections.abc import Iterable

import numpy as np
import torch

from quire.errors import InvalidRequest
from quire.packing import unpack_int32
from quire.v1 import worker_pb2


class RowTable:
    """`check_*` methods raise InvalidRequest and change nothing; the others trust what was checked."""

    def __init__(
        self, max_rows: int, max_model_len: int, num_blocks: int, block_size: int, device: torch.device
    ) -> None:
        self.max_rows = max_rows
        self.block_size = block_size
        self._max_model_len = max_model_len
        self._num_blocks = num_blocks
        self._device = device

        def column(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((max_rows,), value, dtype=dtype, device=device)

        # -- the device's
        self.last_token = column(0, torch.int64)
        self.num_tokens = column(0, torch.int64)
        """Tokens known, prompt and output; the last one's KV is not computed while the row decodes."""
        self.max_total_tokens = column(0, torch.int64)
        self.done = column(0, torch.bool)
        tables = -(-max_model_len // block_size)
        self.block_table = torch.zeros((max_rows, tables), dtype=torch.int64, device=device)
        # -- the host's
        self.used = np.zeros(max_rows, np.bool_)
        self.epochs = np.zeros(max_rows, np.uint32)
        self.decoding = np.zeros(max_rows, np.bool_)
        """Past the prompt."""
        self.failed = np.zeros(max_rows, np.bool_)
        self.num_prefilled = np.zeros(max_rows, np.int64)
        self.num_blocks = np.zeros(max_rows, np.int64)
        self.num_issued = np.zeros(max_rows, np.int64)
        """Tokens that the row has if no stop token comes: what commands so far lead to."""
        self._max_total = np.zeros(max_rows, np.int64)
        self._tokens: dict[int, torch.Tensor] = {}
        self._host_table = np.zeros((max_rows, tables), np.int32)
        self._block_refs = np.zeros(num_blocks, np.int32)

    # -- rows come and go

    def check_removable(self, rows: Iterable[int]) -> None:
        """Rows named once each, all in use."""
        rows = list(rows)
        if len(set(rows)) != len(rows) or any(row >= self.max_rows or not self.used[row] for row in rows):
            raise InvalidRequest(f"cannot remove rows {rows}: not in use, or named twice")

    def remove(self, row: int) -> None:
        """Free a row."""
        self.used[row] = self.decoding[row] = self.failed[row] = False
        self._tokens.pop(row, None)
        np.subtract.at(self._block_refs, self._host_table[row, : self.num_blocks[row]], 1)
        self.num_blocks[row] = 0

    def check_addable(self, added: worker_pb2.RowAdd, removed: Iterable[int]) -> None:
        """The row is free, or is freed by the same command, and its numbers agree."""
        if added.row >= self.max_rows or (self.used[added.row] and added.row not in set(removed)):
            raise InvalidRequest(f"cannot add row {added.row}: it is in use or does not exist")
        if len(added.token_ids) % 4 or len(added.block_ids) % 4:
            raise InvalidRequest(f"row {added.row}: an array's length does not divide")
        num_tokens = len(added.token_ids) // 4
        if not 0 < added.num_prompt_tokens <= num_tokens < added.max_total_tokens <= self._max_model_len:
            raise InvalidRequest(
                f"row {added.row}: {added.num_prompt_tokens} prompt tokens of {num_tokens}, "
                f"at most {added.max_total_tokens} (the model takes {self._max_model_len})"
            )
        if added.num_computed_tokens >= num_tokens:
            raise InvalidRequest(f"row {added.row}: nothing is left to compute")
        self.check_blocks(unpack_int32(added.block_ids).tolist())
        if len(added.block_ids) // 4 > self.block_table.shape[1]:
            raise InvalidRequest(f"row {added.row}: its block table is too long")

    def check_blocks(self, block_ids: Iterable[int]) -> None:
        """Blocks exist."""
        if any(not 0 <= block < self._num_blocks for block in block_ids):
            raise InvalidRequest(f"a block id is not below {self._num_blocks}")

    def add(self, added: worker_pb2.RowAdd, token_ids: torch.Tensor) -> None:
        """Take a row for a sequence whose tokens, int64 [n] on the device, are `token_ids`."""
        row, num_tokens = added.row, len(token_ids)
        self.used[row], self.decoding[row], self.failed[row] = True, False, False
        self.epochs[row] = added.epoch
        self.num_prefilled[row] = added.num_computed_tokens
        self.num_issued[row] = num_tokens
        self._max_total[row] = added.max_total_tokens
        self._tokens[row] = token_ids
        self.last_token[row] = token_ids[-1]
        self.num_tokens[row] = num_tokens
        self.max_total_tokens[row] = added.max_total_tokens
        self.done[row] = False
        self.append_blocks(row, unpack_int32(added.block_ids))

    def fail(self, row: int) -> None:
        """The row computes nothing more, until it is removed."""
        self.failed[row] = True
        self.done[row] = True

    # -- blocks

    def check_appendable(self, rows: list[int], counts: list[int], num_block_ids: int) -> None:
        """Rows in use, whose tables have room."""
        if len(rows) != len(counts) or sum(counts) != num_block_ids or len(set(rows)) != len(rows):
            raise InvalidRequest("append: the columns disagree, or name a row twice")
        for row, count in zip(rows, counts, strict=True):
            if row >= self.max_rows or not self.used[row]:
                raise InvalidRequest(f"append: row {row} is not in use")
            if self.num_blocks[row] + count > self.block_table.shape[1]:
                raise InvalidRequest(f"append: the block table of row {row} is full")

    def append_blocks(self, row: int, block_ids: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
        """Let a row's block table grow."""
        start = int(self.num_blocks[row])
        self._host_table[row, start : start + len(block_ids)] = block_ids
        np.add.at(self._block_refs, block_ids, 1)
        added = torch.from_numpy(block_ids.astype(np.int64)).to(self._device)
        self.block_table[row, start : start + len(block_ids)] = added
        self.num_blocks[row] += len(block_ids)

    # -- steps

    def check_chunks(self, rows: list[int], counts: list[int]) -> None:
        """Each row has that many prompt tokens left, and blocks for them."""
        if len(rows) != len(counts) or len(set(rows)) != len(rows):
            raise InvalidRequest("prefill: the columns disagree, or name a row twice")
        for row, count in zip(rows, counts, strict=True):
            if row >= self.max_rows or not self.used[row] or row not in self._tokens:
                raise InvalidRequest(f"prefill: row {row} has no prompt to compute")
            end = int(self.num_prefilled[row]) + count
            if not 0 < count <= len(self._tokens[row]) - int(self.num_prefilled[row]):
                raise InvalidRequest(f"prefill: row {row} has not {count} tokens left to compute")
            if end > self.num_blocks[row] * self.block_size:
                raise InvalidRequest(f"prefill: row {row} has no block for its token {end - 1}")

    def check_decode(self, decode_steps: int, ending: list[int]) -> None:
        """Every row that decodes has blocks for `decode_steps` steps; `ending` finish their prompt in the first."""
        steps = np.where(self.decoding, decode_steps, 0)
        steps[ending] = max(1, decode_steps)
        tokens = np.minimum(self.num_issued + steps, self._max_total)
        short = (steps > 0) & ~self.failed & (tokens - 1 > self.num_blocks * self.block_size)
        if short.any():
            row = int(np.flatnonzero(short)[0])
            raise InvalidRequest(f"decode: row {row} has no block for its token {int(tokens[row]) - 2}")

    def prompt_ends(self, row: int, count: int) -> bool:
        """Whether the next `count` prompt tokens of a row are its last."""
        return int(self.num_prefilled[row]) + count == len(self._tokens[row])

    def take_chunk(self, row: int, count: int) -> tuple[torch.Tensor, int, bool]:
        """The next `count` prompt tokens of a row, the position of the first, and whether the prompt ends."""
        start = int(self.num_prefilled[row])
        tokens = self._tokens[row]
        self.num_prefilled[row] = start + count
        if start + count < len(tokens):
            return tokens[start : start + count], start, False
        del self._tokens[row]
        self.decoding[row] = True
        return tokens[start:], start, True

    def decoding_rows(self) -> list[int]:
        """Rows that take part in the next decode step: past their prompt, with room, not known to be done."""
        rows = self.used & self.decoding & ~self.failed & (self.num_issued < self._max_total)
        if self._device.type == "cpu":
            # Free here; on a GPU it would wait for the device, whose own done flag makes the work a no-op.
            rows &= ~self.done.numpy()
        return np.flatnonzero(rows).tolist()

    def count_issued(self, rows: list[int]) -> None:
        """Each of `rows` gets a token from the step that is run now."""
        self.num_issued[rows] += 1

    @property
    def num_used(self) -> int:
        """Rows in use."""
        return int(self.used.sum())

    @property
    def num_blocks_used(self) -> int:
        """Distinct blocks that rows in use name."""
        return int(np.count_nonzero(self._block_refs))

    def clear(self) -> None:
        """Remove every row."""
        for row in np.flatnonzero(self.used).tolist():
            self.remove(row)
