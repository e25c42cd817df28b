"""One replica: its blocks, its rows, and the commands that are in flight to it.

Ownership: a block or a row is given back only when the command that removes its row has retired, which is
after every command that could touch it, because a worker runs commands in order. When the worker's stream
breaks its rows are void at once; the blocks' content stays findable as long as the worker's process lives.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quire.packing import pack_int32, pack_uint32
from quire.v1 import worker_pb2
from scheduler_svc.core.block_pool import BlockPool
from scheduler_svc.core.chunking import decode_burst, share_budget
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.row_table import RowTable
from scheduler_svc.core.sequence import LeaveReason, Sequence, SequenceState

_SMOOTHING = 0.2


@dataclass(slots=True)
class InFlight:
    """A command that has not retired, and what its retirement will mean."""

    step_id: int
    decode_steps: int = 0
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    """Sequences that prefill, and the end of their chunk (a token position)."""
    prefill_tokens: int = 0
    removed: list[Sequence] = field(default_factory=list)


class Replica:
    """The state behind one worker's `Run` stream. It decides what a command holds, not who gets a row."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.description = worker_pb2.WorkerDescription()
        self.connected = False
        self.lease_epoch = 0
        self.pool = BlockPool(0)
        self.rows = RowTable(0, 1)
        self.in_flight: deque[InFlight] = deque()
        self.last_step_sent = 0
        self.last_step_retired = 0
        self.decode_step_s = 0.0
        """Smoothed seconds per decode step, 0 while unknown."""
        self.tokens_per_s = 0.0
        """Smoothed speed of commands with prefill in token positions per second, 0 while unknown."""
        self.num_preemptions = 0
        self._limits = limits
        self._to_add: list[Sequence] = []
        self._to_remove: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        self._released: list[Sequence] = []

    # -- the worker comes and goes

    def connect(self, description: worker_pb2.WorkerDescription, lease_epoch: int) -> None:
        """A `Run` stream has opened: rows are free, blocks are as this process of the worker left them."""
        assert not self.connected
        same_process = description.worker_epoch == self.description.worker_epoch
        if not same_process or description.num_blocks != self.pool.num_blocks:
            self.pool = BlockPool(description.num_blocks)
            self.decode_step_s = 0.0
        if (
            description.max_rows != self.rows.max_rows
            or description.block_size != self.description.block_size
        ):
            self.rows = RowTable(description.max_rows, description.block_size)
        self.description = description
        self.lease_epoch = lease_epoch
        self.last_step_sent = self.last_step_retired = 0
        self.connected = True

    def disconnect(self) -> None:
        """The stream is gone: every row is released, and what still ran is preempted by that."""
        self.connected = False
        self.in_flight.clear()
        self._to_add.clear()
        self._to_remove.clear()
        self._prefilling.clear()
        for sequence in self.rows.sequences:
            if sequence is not None:
                if sequence.state is SequenceState.RUNNING:
                    sequence.state, sequence.leave_reason = SequenceState.LEAVING, LeaveReason.PREEMPTED
                    sequence.preemptions += 1
                self._release(sequence)

    # -- sequences come and go

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.description.block_size

    @property
    def num_rows_free(self) -> int:
        """Rows that can be taken; a step must have a token position for every row."""
        rows = self.rows
        return rows.num_free - max(0, rows.max_rows - self._max_step_tokens)

    def running(self) -> Iterator[Sequence]:
        """Sequences that hold a row and keep it."""
        return (s for s in self.rows.sequences if s is not None and s.state is SequenceState.RUNNING)

    def num_running(self) -> int:
        """How many sequences `running` gives."""
        return sum(1 for _ in self.running())

    @property
    def has_room(self) -> bool:
        """Whether a command could be sent now."""
        return self.connected and len(self.in_flight) < self._limits.pipeline_depth

    def fits(self, sequence: Sequence) -> bool:
        """Whether the replica, empty, could run the sequence to its limit."""
        return self._blocks_for(sequence.max_total_tokens - 1) <= self.pool.num_blocks

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's longest known prefix; its last token is always left to compute."""
        block_ids: list[int] = []
        for block_hash in sequence.hash_blocks(
            (len(sequence.token_ids) - 1) // self.block_size, self.block_size
        ):
            block = self.pool.lookup(block_hash)
            if block is None:
                break
            block_ids.append(block)
        return block_ids

    def can_place(self, sequence: Sequence, prefix: list[int]) -> bool:
        """Whether a row and blocks for its tokens so far are free, with room left for those that decode."""
        if self.num_rows_free <= 0:
            return False
        pool = self.pool
        needed = self._blocks_for(len(sequence.token_ids)) - len(prefix)
        needed += sum(1 for block in prefix if pool.ref_count(block) == 0)
        # A block for each row that runs keeps a newcomer from being preempted as soon as it has come.
        taken = self.rows.max_rows - self.rows.num_free
        return needed + taken <= pool.num_free or (taken == 0 and needed <= pool.num_free)

    def place(self, sequence: Sequence, prefix: list[int], now: float) -> None:
        """Give the sequence a row and blocks; the next command adds it."""
        for block in prefix:
            self.pool.share(block)
        count = self._blocks_for(len(sequence.token_ids)) - len(prefix)
        block_ids = prefix + self.pool.allocate(count)
        self.rows.take(sequence, block_ids, len(prefix) * self.block_size, now)
        self._to_add.append(sequence)
        self._prefilling.append(sequence)

    def leave(self, sequence: Sequence, reason: LeaveReason) -> None:
        """Take the sequence off its row; `take_released` gives it back when nothing touches it any more."""
        assert sequence.state is SequenceState.RUNNING
        sequence.state = SequenceState.LEAVING
        sequence.leave_reason = reason
        self.rows.stop(sequence.row)
        if sequence.num_prefill_left:
            self._prefilling.remove(sequence)
        if sequence in self._to_add:
            # The worker has not heard of it.
            self._to_add.remove(sequence)
            self._release(sequence)
        else:
            self._to_remove.append(sequence)

    def take_released(self) -> list[Sequence]:
        """Sequences, settled, whose rows and blocks have come free since the last call."""
        released, self._released = self._released, []
        return released

    # -- commands

    def next_command(self, *, prompts_wait: bool) -> worker_pb2.StepCommand | None:
        """The next command, or None if there is nothing to do or the pipeline is full.

        `prompts_wait`: there is work in the queue, so runs of several decode steps would delay it.
        """
        if not self.has_room:
            return None
        self._preempt_ahead()
        rows = self.rows
        live = rows.live()
        decode_steps = self._decode_steps(live, prompts_wait=prompts_wait)
        short = rows.blocks_short(live, decode_steps)
        num_short = int(short.sum())
        if num_short > self.pool.num_free:
            # Blocks are on their way back; rows must not decode without, and decoding is all or none.
            live, decode_steps, num_short = live[:0], 0, 0
        if not decode_steps and not self._prefilling and not self._to_remove:
            return None
        record = InFlight(step_id=self.last_step_sent + 1, decode_steps=decode_steps)
        command = worker_pb2.StepCommand(
            step_id=record.step_id, lease_epoch=self.lease_epoch, decode_steps=decode_steps
        )
        self._remove_rows(command, record)
        self._add_rows(command)
        if num_short:
            self._append_blocks(command, live, short)
        rows.advance(live, decode_steps)
        self._prefill(command, record, self._max_step_tokens - len(live))
        self.last_step_sent = record.step_id
        self.in_flight.append(record)
        return command

    def _decode_steps(self, live: NDArray[np.intp], *, prompts_wait: bool) -> int:
        if len(live) == 0:
            return 0
        if prompts_wait or self._prefilling:
            return 1
        most = min(self._limits.max_decode_steps, self.description.max_decode_steps)
        if most > 1:
            # No step is issued past the limit of the row that has furthest to go.
            most = min(most, int((self.rows.max_total_tokens[live] - self.rows.num_issued[live]).max()))
        steps = decode_burst(self.decode_step_s, self._limits.decode_burst_s, most)
        while steps > 1 and int(self.rows.blocks_short(live, steps).sum()) > self.pool.num_free:
            steps //= 2
        return steps

    def _preempt_ahead(self) -> None:
        """Preempt the youngest while those that decode would run out of blocks within the pipeline's depth.

        Looking ahead gives a removal time to retire before its blocks are needed. The oldest is never
        preempted, and fits the pool alone, so it always gets on.
        """
        while True:
            ahead = self.rows.blocks_short(self.rows.live(), 1 + self._limits.pipeline_depth)
            shortage = int(ahead.sum()) - self.pool.num_free
            if shortage <= 0 or shortage <= self._num_returning():
                return
            running = sorted(self.running(), key=lambda sequence: sequence.order)
            if len(running) <= 1:
                return
            running[-1].preemptions += 1
            self.num_preemptions += 1
            self.leave(running[-1], LeaveReason.PREEMPTED)

    def _leaving(self) -> Iterator[Sequence]:
        yield from self._to_remove
        for record in self.in_flight:
            yield from record.removed

    def _num_returning(self) -> int:
        """Blocks that come free when the removals under way have retired."""
        pool = self.pool
        return sum(pool.ref_count(block) == 1 for s in self._leaving() for block in s.block_ids)

    def _remove_rows(self, command: worker_pb2.StepCommand, record: InFlight) -> None:
        if self._to_remove:
            command.remove_rows = pack_uint32([sequence.row for sequence in self._to_remove])
            record.removed, self._to_remove = self._to_remove, []

    def _add_rows(self, command: worker_pb2.StepCommand) -> None:
        for sequence in self._to_add:
            command.add_rows.add(
                row=sequence.row,
                epoch=int(self.rows.epochs[sequence.row]),
                token_ids=sequence.token_ids.tobytes(),
                num_prompt_tokens=sequence.num_prompt_tokens,
                num_computed_tokens=sequence.num_cached_here,
                block_ids=pack_int32(sequence.block_ids),
                max_total_tokens=sequence.max_total_tokens,
                sampling=sequence.sampling,
                trace=sequence.request.trace,
            )
        self._to_add.clear()

    def _append_blocks(
        self,
        command: worker_pb2.StepCommand,
        live: NDArray[np.intp],
        short: NDArray[np.int64],
    ) -> None:
        needy = np.flatnonzero(short)
        rows, counts = live[needy], short[needy]
        block_ids = self.pool.allocate(int(counts.sum()))
        self.rows.num_blocks[rows] += counts
        start = 0
        for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
            sequence = self.rows.sequences[row]
            assert sequence is not None
            sequence.block_ids += block_ids[start : start + count]
            start += count
        command.append_rows = pack_uint32(rows)
        command.append_num_blocks = pack_uint32(counts)
        command.append_block_ids = pack_int32(block_ids)

    def _prefill(self, command: worker_pb2.StepCommand, record: InFlight, budget: int) -> None:
        if not self._prefilling:
            return
        sizes = share_budget((sequence.num_prefill_left for sequence in self._prefilling), budget)
        chosen = self._prefilling[: len(sizes)]
        record.prefill_tokens = sum(sizes)
        command.prefill_rows = pack_uint32([sequence.row for sequence in chosen])
        command.prefill_num_tokens = pack_uint32(sizes)
        for sequence, size in zip(chosen, sizes, strict=True):
            sequence.chunk_end += size
            record.chunks.append((sequence, sequence.chunk_end))
            if sequence.num_prefill_left == 0:
                self.rows.begin_decoding(sequence.row, max(1, record.decode_steps))
        # Only the last of the chosen can be left with something to do.
        self._prefilling = [s for s in chosen if s.num_prefill_left] + self._prefilling[len(sizes) :]

    # -- results

    def retire(self, result: worker_pb2.StepResult) -> InFlight:
        """Take the command that `result` answers out of the pipeline, and count its chunks as computed."""
        record = self.in_flight.popleft()
        self.last_step_retired = record.step_id
        failed = {error.row for error in result.errors} if result.errors else ()
        for sequence, chunk_end in record.chunks:
            if sequence.row not in failed:
                sequence.chunk_retired = chunk_end
        if record.chunks:
            if result.step_s > 0.0:
                self.tokens_per_s = _smooth(self.tokens_per_s, result.tokens_computed / result.step_s)
        elif record.decode_steps and len(result.rows):
            self.decode_step_s = _smooth(self.decode_step_s, result.step_s / record.decode_steps)
        return record

    def commit_blocks(self, sequences: Iterable[Sequence]) -> None:
        """Make the full blocks of these sequences findable as far as their KV is computed for certain."""
        rows = self.rows
        for sequence in sequences:
            end = sequence.chunk_retired
            if end == sequence.num_added:
                end = max(end, len(sequence.token_ids) - 1)
            count, done = end // self.block_size, int(rows.num_committed[sequence.row])
            if count > done:
                hashes = sequence.hash_blocks(count, self.block_size)
                for block in range(done, count):
                    self.pool.commit(sequence.block_ids[block], hashes[block])
                rows.num_committed[sequence.row] = count

    def release_removed(self, record: InFlight) -> None:
        """Free the rows and blocks that a retired command removed."""
        for sequence in record.removed:
            self._release(sequence)

    def check_integrity(self) -> None:
        """Assert that pool, rows and pipeline agree."""
        self.rows.check_integrity()
        seated = [sequence for sequence in self.rows.sequences if sequence is not None]
        self.pool.check_integrity(sequence.block_ids for sequence in seated)
        leaving = list(self._leaving())
        assert {s for s in seated if s.state is not SequenceState.RUNNING} == set(leaving)
        assert set(self._to_add) <= set(self._prefilling)
        assert all(s.num_prefill_left for s in self._prefilling)

    @property
    def _max_step_tokens(self) -> int:
        return min(self._limits.max_step_tokens, self.description.max_step_tokens)

    def _blocks_for(self, num_positions: int) -> int:
        return -(-num_positions // self.block_size)

    def _release(self, sequence: Sequence) -> None:
        sequence.settle()
        self.rows.release(sequence.row)
        self.pool.free(sequence.block_ids)
        sequence.block_ids = []
        self._released.append(sequence)


def _smooth(old: float, new: float) -> float:
    return new if old == 0.0 else old + _SMOOTHING * (new - old)
