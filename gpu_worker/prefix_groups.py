"""Which rows of a batch begin with the same blocks, in groups that attend to them together.

Blocks that many rows name are those of a prefix that the scheduler found in its index: a system prompt, or a prompt
with several continuations. Groups change only when rows come or go, so they are found then and kept.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_worker.row_table import RowTable
from kernels.paged_attention import group_members

_FEWEST_ROWS = 4
"""That name a block; fewer would make groups whose rows each miss the larger one."""
_SPARE_GROUPS = 16
_LEAST_SAVED = 1 << 15
"""Tokens of KV of one layer that need not be read; for fewer the groups' own launch takes longer."""


@dataclass(frozen=True, slots=True)
class PrefixGroups:
    """As `kernels.paged_attention.SharedPrefixes`, for a batch of as many rows as there can be."""

    lens: NDArray[np.int32]
    """[max_rows]."""
    members: NDArray[np.int32]
    """[groups, rows of a group]: places in the batch."""

    def packed(self) -> NDArray[np.int32]:
        """Both, one after the other."""
        return np.concatenate((self.lens, self.members.ravel()))


class PrefixFinder:
    """Finds the groups of batches of a table's rows."""

    def __init__(self, table: RowTable, num_heads: int, num_kv_heads: int) -> None:
        self._table = table
        self.group_members = group_members(num_heads, num_kv_heads)
        self.num_groups = groups_of(table.max_rows, self.group_members)
        self._known: tuple[int, bytes] | None = None
        self._found: PrefixGroups | None = None

    def find(self, rows: NDArray[np.int64]) -> PrefixGroups | None:
        """The groups of a batch; None where reading everything takes no longer. The same object while it holds."""
        known = (self._table.version, rows.tobytes())
        if known != self._known:
            self._known, self._found = known, self._search(rows)
        return self._found

    def _search(self, rows: NDArray[np.int64]) -> PrefixGroups | None:
        table = self._table
        shared = self._worth_sharing(rows)
        places = np.flatnonzero(shared)
        if len(places) < _FEWEST_ROWS:
            return None
        tables = table.tables(rows[places], int(shared.max()))
        counts = shared[places]
        last_shared = tables[np.arange(len(places)), counts - 1]
        groups: list[tuple[int, NDArray[np.int64]]] = []
        for block in np.unique(last_shared).tolist():
            named = np.flatnonzero(last_shared == block)
            count = int(counts[named[0]])
            # Whoever names the same last block names the same before it, unless a scheduler is wrong.
            alike = (tables[named, :count] == tables[named[0], :count]).all(axis=1) & (counts[named] == count)
            groups.append((count * table.block_size, places[named[alike]]))
        return self._listed(groups, len(rows))

    def _worth_sharing(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Blocks at each row's beginning to share: all that a few rows name, or fewer that fill a group, whichever
        saves more (as where each of many prompts behind one system prompt has some continuations)."""
        table, size = self._table, self.group_members
        best, most = np.zeros(len(rows), np.int64), np.zeros(len(rows))
        for num_rows in sorted({_FEWEST_ROWS, max(_FEWEST_ROWS, size)}):
            counts = table.shared_blocks(rows, num_rows)
            if not counts.any():
                break  # what few rows do not share, more do not
            sharers = np.minimum(table.num_sharing(rows, counts), size)
            saved = counts * (1 - 1 / np.maximum(sharers, 1))
            best, most = np.where(saved > most, counts, best), np.maximum(saved, most)
        return best

    def _listed(self, groups: list[tuple[int, NDArray[np.int64]]], num_rows: int) -> PrefixGroups | None:
        """In groups that fit, those that save most first; no more than a step of so many rows looks at."""
        size = self.group_members
        parts = [
            (length * (len(members[first : first + size]) - 1), length, members[first : first + size])
            for length, members in groups
            for first in range(0, len(members), size)
        ]
        parts.sort(key=lambda part: -part[0])
        parts = [part for part in parts[: groups_of(num_rows, size)] if part[0]]
        if sum(saved for saved, _, _ in parts) < _LEAST_SAVED:
            return None
        found = PrefixGroups(
            np.zeros(self._table.max_rows, np.int32), np.full((self.num_groups, size), -1, np.int32)
        )
        for number, (_, length, members) in enumerate(parts):
            found.lens[members] = length
            found.members[number, : len(members)] = members
        return found


def groups_of(num_rows: int, members: int) -> int:
    """Groups that a batch of `num_rows` has room for."""
    return -(-num_rows // members) + _SPARE_GROUPS
