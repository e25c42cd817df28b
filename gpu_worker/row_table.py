"""The host's mirror of the rows: what commands determine without looking at tokens.

It runs ahead of the device: which rows are in use, how long their prompts and block tables are, and how many tokens
they will have at most. What depends on tokens (the last one, whether a row is done) is on the device alone, in
`device_rows.py`; that a row is done the host knows only from results, so until it is removed it counts as running.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from quire.errors import InvalidRequest
from quire.packing import unpack_int32
from quire.v1 import worker_pb2


class RowTable:
    """`check_*` methods raise InvalidRequest and change nothing; the others trust what was checked."""

    def __init__(self, max_rows: int, max_model_len: int, num_blocks: int, block_size: int) -> None:
        self.max_rows = max_rows
        self.block_size = block_size
        self.max_blocks = -(-max_model_len // block_size)
        """Most blocks of one row."""
        self._max_model_len = max_model_len
        self._num_blocks = num_blocks
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
        self._tokens: dict[int, NDArray[np.int32]] = {}
        self._block_table = np.zeros((max_rows, self.max_blocks), np.int32)
        self._block_refs = np.zeros(num_blocks, np.int32)
        self.version = 0
        """Another one whenever rows have come or gone."""
        self.num_used = 0
        """Rows in use."""
        # Kept while it holds: with arrays of all rows, which are longer, every command would be slower, and numpy would
        # let other threads in between each two of them.
        self._running: NDArray[np.int64] | None = None

    # -- rows come and go

    def check_removable(self, rows: Iterable[int]) -> None:
        """Rows named once each, all in use."""
        rows = list(rows)
        if len(set(rows)) != len(rows) or any(row >= self.max_rows or not self.used[row] for row in rows):
            raise InvalidRequest(f"cannot remove rows {rows}: not in use, or named twice")

    def remove(self, row: int) -> None:
        """Free a row."""
        self.version += 1
        self.num_used -= 1
        self._running = None
        self.used[row] = self.decoding[row] = self.failed[row] = False
        self._tokens.pop(row, None)
        np.subtract.at(self._block_refs, self._block_table[row, : self.num_blocks[row]], 1)
        self.num_blocks[row] = 0

    def check_addable(self, added: Iterable[worker_pb2.RowAdd], removed: Iterable[int]) -> None:
        """Rows named once each, free or freed by the same command, whose numbers agree."""
        removed, seen = set(removed), set()
        for item in added:
            if item.row in seen:
                raise InvalidRequest(f"add: row {item.row} is named twice")
            seen.add(item.row)
            self._check_add(item, item.row in removed)

    def _check_add(self, added: worker_pb2.RowAdd, is_freed: bool) -> None:
        if added.row >= self.max_rows or (self.used[added.row] and not is_freed):
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
        self.check_blocks(unpack_int32(added.block_ids))
        if len(added.block_ids) // 4 > self.max_blocks:
            raise InvalidRequest(f"row {added.row}: its block table is too long")

    def check_blocks(self, block_ids: NDArray[np.int32]) -> None:
        """Blocks exist."""
        # As unsigned numbers those below 0 are large ones.
        if len(block_ids) and int(block_ids.view(np.uint32).max()) >= self._num_blocks:
            raise InvalidRequest(f"a block id is not below {self._num_blocks}")

    def add(self, added: worker_pb2.RowAdd) -> None:
        """Take a row for a sequence."""
        self.version += 1
        self.num_used += 1
        self._running = None
        row = added.row
        self.used[row], self.decoding[row], self.failed[row] = True, False, False
        self.epochs[row] = added.epoch
        self.num_prefilled[row] = added.num_computed_tokens
        self._max_total[row] = added.max_total_tokens
        self._tokens[row] = unpack_int32(added.token_ids)
        self.num_issued[row] = len(self._tokens[row])
        block_ids = unpack_int32(added.block_ids)
        self._block_table[row, : len(block_ids)] = block_ids
        np.add.at(self._block_refs, block_ids, 1)
        self.num_blocks[row] = len(block_ids)

    def fail(self, row: int) -> None:
        """The row computes nothing more, until it is removed."""
        self.failed[row] = True
        self._running = None

    def clear(self) -> None:
        """Remove every row."""
        for row in np.flatnonzero(self.used).tolist():
            self.remove(row)

    # -- blocks

    def check_appendable(
        self, rows: NDArray[np.int64], counts: NDArray[np.int64], num_block_ids: int
    ) -> None:
        """Rows in use, named once each, whose tables have room; int64 [n] both."""
        if (
            len(rows) != len(counts)
            or int(counts.sum()) != num_block_ids
            or len(set(rows.tolist())) != len(rows)
        ):
            raise InvalidRequest("append: the columns disagree, or name a row twice")
        known = rows[rows < self.max_rows]
        if len(known) < len(rows) or not self.used[known].all():
            raise InvalidRequest(f"append: not all of the rows {rows.tolist()} are in use")
        if (self.num_blocks[rows] + counts > self.max_blocks).any():
            raise InvalidRequest(f"append: a block table of the rows {rows.tolist()} is full")

    def append_blocks(
        self, rows: NDArray[np.int64], counts: NDArray[np.int64], block_ids: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Let the block tables of some rows grow, each by as many ids as its count; where they went: rows, columns."""
        places = np.repeat(rows, counts)
        firsts = self.num_blocks[rows] - (np.cumsum(counts) - counts)
        columns = np.repeat(firsts, counts) + np.arange(len(block_ids))
        self._block_table[places, columns] = block_ids
        np.add.at(self._block_refs, block_ids, 1)
        self.num_blocks[rows] += counts
        return places, columns

    def shared_blocks(self, rows: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
        """How many blocks at the beginning of each of `rows` are named by `num_rows` rows or more."""
        counts = np.zeros(len(rows), np.int64)
        left, start = np.arange(len(rows)), 0
        while len(left):
            # Most rows share nothing, which one column tells.
            width = max(1, min(start, self.max_blocks - start))
            columns = np.arange(start, start + width)
            refs = self._block_refs[self._block_table[rows[left], start : start + width]]
            is_shared = (refs >= num_rows) & (columns < self.num_blocks[rows[left], None])
            lengths = np.where(is_shared.all(axis=1), width, is_shared.argmin(axis=1))
            counts[left] += lengths
            start += width
            left = left[lengths == width] if start < self.max_blocks else left[:0]
        return counts

    def num_sharing(self, rows: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many rows name the last of the first `counts` blocks of each of `rows`; arbitrary where there is none."""
        last = self._block_table[rows, np.maximum(counts - 1, 0)]
        return self._block_refs[last].astype(np.int64)

    def tables(self, rows: NDArray[np.int64], num_blocks: int) -> NDArray[np.int32]:
        """The first blocks of some rows, [n, num_blocks]."""
        found: NDArray[np.int32] = self._block_table[rows, :num_blocks]
        return found

    def slots(self, row: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the KV of some positions of a row goes: block * block_size + offset."""
        blocks = self._block_table[row, positions // self.block_size].astype(np.int64)
        slots: NDArray[np.int64] = blocks * self.block_size + positions % self.block_size
        return slots

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
        if decode_steps:
            self._check_room(self._running_rows(), decode_steps)
        starting = [row for row in ending if not self.failed[row]]
        self._check_room(np.array(starting, np.int64), max(1, decode_steps))

    def _check_room(self, rows: NDArray[np.int64], num_steps: int) -> None:
        tokens = np.minimum(self.num_issued[rows] + num_steps, self._max_total[rows])
        short = np.flatnonzero(tokens - 1 > self.num_blocks[rows] * self.block_size)
        if len(short):
            row, token = int(rows[short[0]]), int(tokens[short[0]]) - 2
            raise InvalidRequest(f"decode: row {row} has no block for its token {token}")

    def prompt_ends(self, row: int, count: int) -> bool:
        """Whether the next `count` prompt tokens of a row are its last."""
        return int(self.num_prefilled[row]) + count == len(self._tokens[row])

    def take_chunk(self, row: int, count: int) -> tuple[NDArray[np.int32], int, bool]:
        """The next `count` prompt tokens of a row, the position of the first, and whether the prompt ends."""
        start = int(self.num_prefilled[row])
        tokens = self._tokens[row]
        self.num_prefilled[row] = start + count
        if start + count < len(tokens):
            return tokens[start : start + count], start, False
        del self._tokens[row]
        self.decoding[row] = True
        self._running = None
        return tokens[start:], start, True

    def decoding_rows(self) -> NDArray[np.int64]:
        """Rows that take part in the next decode step, unless they are done: past their prompt, with room."""
        rows = self._running_rows()
        return rows[self.num_issued[rows] < self._max_total[rows]]

    def _running_rows(self) -> NDArray[np.int64]:
        """Rows past their prompt that did not fail, ascending."""
        if self._running is None:
            self._running = np.flatnonzero(self.decoding & ~self.failed)
        return self._running

    def count_issued(self, rows: NDArray[np.int64], num_steps: int) -> None:
        """Each of `rows` gets a token from each of the steps that are run now, as long as it has room."""
        self.num_issued[rows] = np.minimum(self.num_issued[rows] + num_steps, self._max_total[rows])

    @property
    def num_blocks_used(self) -> int:
        """Distinct blocks that rows in use name."""
        return int(np.count_nonzero(self._block_refs))
