"""The scheduler's side of one worker's row table, in numpy columns, so that a steady step walks no rows.

A row is *taken* from the step that adds it until the command that removes it has retired. While its sequence
is RUNNING and past its prompt the row is *decoding*. Column lengths are all [max_rows].
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.core.sequence import Sequence

NOBODY = -1


class RowTable:
    """Rows, who sits on them, and how far commands in flight will have brought them."""

    def __init__(self, max_rows: int, block_size: int) -> None:
        self.max_rows = max_rows
        self._block_size = block_size
        self.sequences: list[Sequence | None] = [None] * max_rows
        self.taken = np.zeros(max_rows, np.bool_)
        self.epochs = np.zeros(max_rows, np.uint32)
        # -- what commands sent so far lead to
        self.decoding = np.zeros(max_rows, np.bool_)
        self.num_issued = np.zeros(max_rows, np.int64)  # tokens, if no stop token intervenes
        self.max_total_tokens = np.zeros(max_rows, np.int64)
        self.num_blocks = np.zeros(max_rows, np.int64)  # length of the block table
        # -- what retired commands have brought
        self.num_known = np.zeros(max_rows, np.int64)  # tokens
        self.num_committed = np.zeros(max_rows, np.int64)  # full blocks offered to the pool's prefix table
        self.last_token_at = np.full(max_rows, np.nan)  # seconds; NaN before the first token
        # -- whom tokens go to
        self.clients = np.full(max_rows, NOBODY, np.int64)
        self.handles = np.zeros(max_rows, np.uint32)
        self.indices = np.zeros(max_rows, np.uint32)
        self.tenants = np.zeros(max_rows, np.int64)  # their indices
        self._num_live: int | None = 0
        self._free = list(range(max_rows - 1, -1, -1))
        self._of_priority: Counter[int] = Counter()

    @property
    def num_free(self) -> int:
        """Rows that can be taken."""
        return len(self._free)

    def num_not_below(self, priority: int) -> int:
        """Rows taken by sequences of this priority or a higher one, which is a smaller number."""
        return sum(count for each, count in self._of_priority.items() if each <= priority)

    def take(self, sequence: Sequence, block_ids: list[int], num_cached: int, now: float) -> None:
        """Seat a sequence on a free row, with a new epoch."""
        row = self._free.pop()
        self.sequences[row] = sequence
        self._of_priority[sequence.request.priority] += 1
        self.taken[row] = True
        self.epochs[row] += 1
        sequence.enter(row, block_ids, num_cached, now)
        self.decoding[row] = False
        self.num_issued[row] = self.num_known[row] = sequence.num_added
        self.max_total_tokens[row] = sequence.max_total_tokens
        self.num_blocks[row] = len(block_ids)
        self.num_committed[row] = num_cached // self._block_size
        self.last_token_at[row] = sequence.last_token_at
        self.clients[row] = sequence.request.client
        self.handles[row] = sequence.request.handle
        self.indices[row] = sequence.index
        self.tenants[row] = sequence.request.tenant.index

    def stop(self, row: int) -> None:
        """No later command decodes this row."""
        self.decoding[row] = False
        self._num_live = None

    def mute(self, row: int) -> None:
        """Tokens of this row go to nobody."""
        self.clients[row] = NOBODY

    def release(self, row: int) -> None:
        """Free a row whose removal has retired (or whose worker is gone)."""
        sequence = self.sequences[row]
        assert sequence is not None, f"row {row} released twice"
        sequence.last_token_at = float(self.last_token_at[row])
        sequence.row = NOBODY
        self.sequences[row] = None
        self._of_priority[sequence.request.priority] -= 1
        self.taken[row] = False
        self.decoding[row] = False
        self._num_live = None
        self.clients[row] = NOBODY
        self._free.append(row)

    def live(self) -> NDArray[np.intp]:
        """Rows that the next decode step advances: past their prompt, and not at their limit."""
        return np.flatnonzero(self.decoding & (self.num_issued < self.max_total_tokens))

    @property
    def num_live(self) -> int:
        """How many rows `live` gives. Every new request asks every replica, between commands that change it."""
        if self._num_live is None:
            self._num_live = len(self.live())
        return self._num_live

    def blocks_short(self, rows: NDArray[np.intp], num_steps: int) -> NDArray[np.int64]:
        """Blocks each of `rows` lacks for `num_steps` more decode steps, int64 [len(rows)], never negative.

        A row with t tokens has the KV of t - 1 positions: the last token is the next step's input.
        """
        tokens = np.minimum(self.num_issued[rows] + num_steps, self.max_total_tokens[rows])
        needed = (tokens + (self._block_size - 2)) // self._block_size
        return np.maximum(needed - self.num_blocks[rows], 0)

    def by_tenant(self, rows: NDArray[np.intp], counts: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(tenant index, sum of its rows' counts) for rows and counts [n]."""
        sums = np.bincount(self.tenants[rows], weights=counts)
        return [(index, int(sums[index])) for index in np.flatnonzero(sums).tolist()]

    def advance(self, rows: NDArray[np.intp], num_steps: int) -> None:
        """Count `num_steps` decode steps as issued for `rows`."""
        self._num_live = None
        self.num_issued[rows] = np.minimum(self.num_issued[rows] + num_steps, self.max_total_tokens[rows])

    def begin_decoding(self, row: int, num_sampled: int) -> None:
        """The prompt is wholly issued; the command that ends it samples `num_sampled` tokens."""
        self.decoding[row] = True
        self.advance(np.asarray([row], np.intp), num_sampled)

    def check_integrity(self) -> None:
        """Assert that rows and sequences agree."""
        taken = [row for row, sequence in enumerate(self.sequences) if sequence is not None]
        assert taken == np.flatnonzero(self.taken).tolist(), "the column and the sequences differ"
        assert sorted([*self._free, *taken]) == list(range(self.max_rows)), "a row is lost or free twice"
        seated = [sequence for sequence in self.sequences if sequence is not None]
        assert self._num_live in (None, len(self.live())), "rows that decode are miscounted"
        assert self._of_priority == Counter(s.request.priority for s in seated), "priorities are miscounted"
        for row in taken:
            sequence = self.sequences[row]
            assert sequence is not None
            assert sequence.row == row
            assert self.num_blocks[row] == len(sequence.block_ids)
            assert self.num_known[row] >= len(sequence.token_ids)
            assert self.num_issued[row] <= max(sequence.max_total_tokens, sequence.num_added)
            assert self.num_known[row] <= self.num_issued[row]
