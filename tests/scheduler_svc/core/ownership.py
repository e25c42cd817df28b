"""Witnesses: who may still touch which rows and blocks, and whose cache gives way to whom."""

from collections import Counter

from quire.packing import unpack_int32, unpack_uint32
from quire.v1 import worker_pb2
from scheduler_svc.core.block_pool import NOBODY, BlockPool


class Ownership:
    """One worker's stream, as a witness sees it: a row or block is free once its removal has retired.

    A worker that runs commands in order would not notice a block that is given out again too early, while the
    command that removes its last row is on its way. This does.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self.clear()

    def clear(self) -> None:
        """The stream is gone, and all rows with it."""
        self._tables: dict[int, list[int]] = {}
        self._leaving_rows: dict[int, int] = {}
        self._leaving_blocks: dict[int, int] = {}

    def sent(self, command: worker_pb2.StepCommand) -> None:
        """Check what a command takes, and note what it gives up."""
        for row in unpack_uint32(command.remove_rows).tolist():
            self._leaving_rows[row] = command.step_id
            self._leaving_blocks |= dict.fromkeys(self._tables.pop(row), command.step_id)
        for added in command.add_rows:
            blocks = unpack_int32(added.block_ids).tolist()
            assert added.row not in self._tables, "a row is given out twice"
            assert added.row not in self._leaving_rows, "a row is given out before its removal has retired"
            self._check_fresh(blocks[added.num_computed_tokens // self._block_size :])
            self._tables[added.row] = blocks
        blocks, start = unpack_int32(command.append_block_ids).tolist(), 0
        self._check_fresh(blocks)
        rows, counts = unpack_uint32(command.append_rows), unpack_uint32(command.append_num_blocks)
        for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
            self._tables[row] += blocks[start : start + count]
            start += count

    def retired(self, step_id: int) -> None:
        """What the command gave up is free."""
        self._leaving_rows = {row: step for row, step in self._leaving_rows.items() if step > step_id}
        self._leaving_blocks = {block: step for block, step in self._leaving_blocks.items() if step > step_id}

    def _check_fresh(self, blocks: list[int]) -> None:
        held = {block for table in self._tables.values() for block in table}
        assert held.isdisjoint(blocks), "a block that is to be written is another row's"
        early = self._leaving_blocks.keys() & set(blocks)
        assert not early, f"blocks {sorted(early)} are given out before their removal has retired"


class WitnessedPool(BlockPool):
    """A pool under observation: what an owner has within its floor, held and cached, others do not take."""

    def allocate(self, count: int, owner: int = NOBODY) -> list[int]:
        """As the pool's."""
        cached = self._cached_by_owner()
        taken = super().allocate(count, owner)
        left = self._cached_by_owner()
        for other, floor in self._floors.items():
            lost = cached[other] - left[other]
            if other != owner:
                had = cached[other] + self.held.get(other, 0)
                assert not lost or had - lost >= floor, "a prefix within its floor was evicted"
            elif lost and left[other] + self.held[other] <= floor:
                assert not self._unprotected(), "an owner's own prefix was evicted before what no floor keeps"
        return taken

    def _unprotected(self) -> bool:
        """Whether a free block is left that no floor keeps."""
        if any(True for sentinel in self._sentinels()[:2] for _ in self._walk(sentinel)):
            return True
        return any(
            self._cached[sentinel] > 0
            and self.held.get(owner, 0) + self._cached[sentinel] > self._floors.get(owner, 0)
            for owner, sentinel in self._lists.items()
        )

    def _cached_by_owner(self) -> Counter[int]:
        """Blocks that each owner with a floor could find again, and that were cached when it had one."""
        if not self._floors:
            return Counter()
        lists = {sentinel: owner for owner, sentinel in self._lists.items()}
        free = (block for block in range(self.num_blocks) if not self._ref_counts[block])
        return Counter(lists[self._list_of[block]] for block in free if self._list_of[block] in lists)
