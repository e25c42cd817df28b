"""One replica: its blocks, its rows, and the commands that are in flight to it.

Ownership: a block or a row is given back only when the command that removes its row has retired, which is
after every command that could touch it, because a worker runs commands in order. When the worker's stream
breaks its rows are void at once; the blocks' content stays findable as long as the worker's process lives.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil, inf
from typing import TYPE_CHECKING

from quire.v1 import worker_pb2
from scheduler_svc.core.block_pool import NOBODY, BlockPool
from scheduler_svc.core.coming_blocks import ComingBlocks
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.routing import Load
from scheduler_svc.core.row_table import RowTable
from scheduler_svc.core.sequence import LeaveReason, Sequence, SequenceState
from scheduler_svc.core.speed import Speed
from scheduler_svc.core.tenants import Tenant

if TYPE_CHECKING:
    from scheduler_svc.core.looks import Look

# A result's way to the scheduler and the next command's to the worker, with what both compute.
_ROUND_TRIP_S = 0.0015


@dataclass(slots=True)
class InFlight:
    """A command that has not retired, and what its retirement will mean."""

    step_id: int
    sent_at: float = 0.0
    """Seconds."""
    decode_steps: int = 0
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    """Sequences that prefill, and the end of their chunk (a token position)."""
    prefill_tokens: int = 0
    removed: list[Sequence] = field(default_factory=list)


class Replica:
    """The state behind one worker's `Run` stream; `commands` decides what a command holds."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.description = worker_pb2.WorkerDescription()
        self.connected = False
        self.missed_since = inf
        """When its worker was lost, in seconds, while it may come back; else inf."""
        self.draining = False
        """Its worker is leaving: it gets no more sequences, and those on it move."""
        self.lease_epoch = 0
        self.pool = BlockPool(0)
        self.rows = RowTable(0, 1)
        self.speed = Speed()
        self.in_flight: deque[InFlight] = deque()
        self.last_step_sent = 0
        self.last_step_retired = 0
        self.num_preemptions = 0
        self.to_add: list[Sequence] = []
        self.to_remove: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        self.backlog = 0
        """Positions that those have yet to ask for."""
        self.ceilings: dict[int, int] = {}
        """Blocks that tenants may hold, by their index, where that is not all."""
        self.assigned: list[tuple[int, int]] = []
        """(lease epoch, step id) of the command that assigned each block last, as the worker counts too."""
        self.retired_at = 0.0
        """When the worker was last heard of, in seconds."""
        self.coming = ComingBlocks()
        self.looks: dict[Sequence, Look] = {}
        """What `looks` has found out since rows, blocks or prompts changed here."""
        self._released: list[Sequence] = []

    # -- the worker comes and goes

    def connect(self, description: worker_pb2.WorkerDescription, lease_epoch: int) -> None:
        """A `Run` stream has opened: rows are free, blocks are as this process of the worker left them."""
        assert not self.connected
        self.looks.clear()
        same_process = description.worker_epoch == self.description.worker_epoch
        if not same_process or description.num_blocks != self.pool.num_blocks:
            self.pool = BlockPool(description.num_blocks)
            self.assigned = [(0, 0)] * description.num_blocks
            self.speed.forget_steps()
        if (
            description.max_rows != self.rows.max_rows
            or description.block_size != self.description.block_size
        ):
            self.rows = RowTable(description.max_rows, description.block_size)
        self.description = description
        self.lease_epoch = lease_epoch
        self.last_step_sent = self.last_step_retired = 0
        self.connected, self.draining, self.missed_since = True, False, inf

    def adopt(self, blocks: Iterable[tuple[bytes, int, tuple[int, int]]]) -> None:
        """Take over what free blocks hold: hash, block, and who assigned it."""
        self.looks.clear()
        for block_hash, block, assigned in blocks:
            if 0 <= block < self.pool.num_blocks:
                self.pool.adopt(block, block_hash)
                self.assigned[block] = assigned

    def disconnect(self, now: float) -> None:
        """The stream is gone: every row is released, and what still ran is preempted by that."""
        self.connected, self.missed_since = False, now
        self.looks.clear()
        self.in_flight.clear()
        self.to_add.clear()
        self.to_remove.clear()
        for pending in self.prefilling:
            pending.request.tenant.num_pending -= pending.num_prefill_left
        self.prefilling.clear()
        self.backlog = 0
        self.coming.clear()
        for sequence in self.rows.sequences:
            if sequence is not None:
                if sequence.state is SequenceState.RUNNING:
                    sequence.state, sequence.leave_reason = SequenceState.LEAVING, LeaveReason.PREEMPTED
                    sequence.preemptions += 1
                self._release(sequence)

    # -- what it has

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.description.block_size

    @property
    def max_step_tokens(self) -> int:
        """Token positions that a step may have."""
        return min(self.limits.max_step_tokens, self.description.max_step_tokens)

    @property
    def num_rows_free(self) -> int:
        """Rows that can be taken; a step must have a token position for every row."""
        rows = self.rows
        return rows.num_free - max(0, rows.max_rows - self.max_step_tokens)

    @property
    def num_rows_taken(self) -> int:
        """Rows that sequences hold, or that wait for their removal to retire."""
        return self.rows.max_rows - self.rows.num_free

    @property
    def has_room(self) -> bool:
        """Whether a command could be sent now."""
        return self.connected and len(self.in_flight) < self.pipeline_depth

    @property
    def pipeline_depth(self) -> int:
        """Commands that may be in flight: more of those that take less time than their way there and back."""
        depth, speed = self.limits.pipeline_depth, self.speed
        if speed.decode_step_s <= 0.0 or depth == 1:
            return depth
        command_s = max(speed.decode_step_s, speed.command_s)
        return min(max(depth, 1 + ceil(_ROUND_TRIP_S / command_s)), 2 * depth)

    @property
    def load(self) -> Load:
        """How busy it is."""
        return Load(self.backlog, self.num_rows_taken)

    def running(self) -> Iterator[Sequence]:
        """Sequences that hold a row and keep it."""
        return (s for s in self.rows.sequences if s is not None and s.state is SequenceState.RUNNING)

    def above_floor(self) -> list[Sequence]:
        """Those of `running` whose tenants hold more blocks than are kept for them."""
        pool = self.pool
        return [s for s in self.running() if pool.is_above_floor(s.request.tenant.index)]

    def num_running(self) -> int:
        """How many sequences `running` gives."""
        return sum(1 for _ in self.running())

    def leaving(self) -> Iterator[Sequence]:
        """Sequences whose rows come free when their removals have retired."""
        yield from self.to_remove
        for record in self.in_flight:
            yield from record.removed

    def returning(self) -> Counter[int]:
        """Blocks that come free when the removals under way have retired, by the tenant that held them."""
        returning: Counter[int] = Counter()
        for sequence in self.leaving():
            count = sum(self.pool.ref_count(block) == 1 for block in sequence.block_ids)
            returning[sequence.request.tenant.index] += count
        return returning

    def num_returning_to(self, owner: int = NOBODY) -> int:
        """Those of `returning` that this tenant could take: what others' floors keep for them stays theirs."""
        pool = self.pool
        return sum(
            count if other == owner else min(count, max(0, pool.held.get(other, 0) - pool.floor(other)))
            for other, count in self.returning().items()
        )

    # -- what fits

    def set_policy(self, tenant: Tenant) -> None:
        """Give the tenant its floor and ceiling here, as far as they leave room for any one sequence of full length."""
        pool, index = self.pool, tenant.index
        longest = min(pool.num_blocks, self.blocks_for(self.description.model.max_model_len - 1))
        most = pool.num_blocks - longest - pool.floors_of_others(index)
        floor = max(0, min(int(tenant.kv_floor * pool.num_blocks), most))
        ceiling = pool.num_blocks
        if tenant.kv_ceiling < 1.0:
            ceiling = max(longest, int(tenant.kv_ceiling * pool.num_blocks))
        if (floor, ceiling) == (pool.floor(index), self.ceiling(index)):
            return  # every request brings its tenant's policy
        self.looks.clear()
        pool.set_floor(index, floor)
        self.ceilings.pop(index, None)
        if ceiling < pool.num_blocks:
            self.ceilings[index] = ceiling

    def ceiling(self, index: int) -> int:
        """Blocks that the tenant with this index may hold."""
        return self.ceilings.get(index, self.pool.num_blocks)

    def fits(self, sequence: Sequence) -> bool:
        """Whether the replica, without other work, could run the sequence to its limit."""
        return self.blocks_for(sequence.max_total_tokens - 1) <= self.pool.num_blocks

    def note_sent(self, record: InFlight) -> None:
        """A command has been made: rows have got blocks, and prompts have less left to compute."""
        self.looks.clear()
        self.last_step_sent = record.step_id
        self.in_flight.append(record)

    def blocks_for(self, num_positions: int) -> int:
        """Blocks that hold so many token positions."""
        return -(-num_positions // self.block_size)

    # -- sequences come and go

    def place(self, sequence: Sequence, cached: list[int], now: float) -> None:
        """Give the sequence a row, and blocks after those that hold its prefix; the next command adds it."""
        self.looks.clear()
        tenant = sequence.request.tenant
        self.pool.share(cached, tenant.index)
        count = self.blocks_for(len(sequence.token_ids)) - len(cached)
        block_ids = cached + self.pool.allocate(count, tenant.index)
        self.rows.take(sequence, block_ids, len(cached) * self.block_size, now)
        tenant.num_pending += sequence.num_prefill_left
        self.backlog += sequence.num_prefill_left
        self.coming.begin(sequence, len(cached), len(sequence.token_ids) // self.block_size)
        self.to_add.append(sequence)
        self.prefilling.append(sequence)

    def leave(self, sequence: Sequence, reason: LeaveReason) -> None:
        """Take the sequence off its row; `take_released` gives it back when nothing touches it any more."""
        assert sequence.state is SequenceState.RUNNING
        self.looks.clear()
        sequence.state = SequenceState.LEAVING
        sequence.leave_reason = reason
        self.rows.stop(sequence.row)
        if sequence.num_prefill_left:
            self.prefilling.remove(sequence)
        self._stop_computing(sequence)
        if sequence in self.to_add:
            # The worker has not heard of it.
            self.to_add.remove(sequence)
            self._release(sequence)
        else:
            self.to_remove.append(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence off its row, to be placed again later."""
        sequence.preemptions += 1
        self.num_preemptions += 1
        self.leave(sequence, LeaveReason.PREEMPTED)

    def take_released(self) -> list[Sequence]:
        """Sequences, settled, whose rows and blocks have come free since the last call."""
        released, self._released = self._released, []
        return released

    # -- results

    def retire(self, result: worker_pb2.StepResult, now: float) -> InFlight:
        """Take the command that `result` answers out of the pipeline, and count its chunks as computed."""
        record = self.in_flight.popleft()
        if record.decode_steps and not record.prefill_tokens and record.sent_at < self.retired_at:
            self.speed.note_interval(now - self.retired_at, result.step_s)
        self.retired_at = now
        self.last_step_retired = record.step_id
        failed = {error.row for error in result.errors} if result.errors else ()
        for sequence, chunk_end in record.chunks:
            if sequence.row not in failed:
                sequence.chunk_retired = chunk_end
        self.speed.note_step(result, record.decode_steps, record.prefill_tokens)
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
                self.looks.clear()
                assert count <= len(sequence.block_ids), (
                    "blocks were released before their removal has retired"
                )
                hashes = sequence.hash_blocks(count, self.block_size)
                for block in range(done, count):
                    self.pool.commit(sequence.block_ids[block], hashes[block])
                self.coming.end(sequence, done, count)
                rows.num_committed[sequence.row] = count

    def release_removed(self, record: InFlight) -> None:
        """Free the rows and blocks that a retired command removed."""
        for sequence in record.removed:
            self._release(sequence)

    def check_integrity(self) -> None:
        """Assert that pool, rows and pipeline agree."""
        self.rows.check_integrity()
        seated = [sequence for sequence in self.rows.sequences if sequence is not None]
        self.pool.check_integrity((s.request.tenant.index, s.block_ids) for s in seated)
        leaving = list(self.leaving())
        assert {s for s in seated if s.state is not SequenceState.RUNNING} == set(leaving)
        assert set(self.to_add) <= set(self.prefilling)
        assert all(s.num_prefill_left for s in self.prefilling)
        assert self.backlog == sum(s.num_prefill_left for s in self.prefilling), "the backlog is miscounted"
        self.coming.check_integrity(set(self.running()))

    def _stop_computing(self, sequence: Sequence) -> None:
        """What it has not computed is not coming from it any more."""
        sequence.request.tenant.num_pending -= sequence.num_prefill_left
        self.backlog -= sequence.num_prefill_left
        committed = int(self.rows.num_committed[sequence.row])
        self.coming.end(sequence, committed, sequence.num_added // self.block_size)

    def _release(self, sequence: Sequence) -> None:
        sequence.settle()
        self.looks.clear()
        self.rows.release(sequence.row)
        self.pool.free(sequence.block_ids, sequence.request.tenant.index)
        sequence.block_ids = []
        self._released.append(sequence)
