"""A test of the tests: each of these bugs, planted in the core, must be found by the random histories."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.instant_rows import ProtocolViolation
from scheduler_svc import adoption
from scheduler_svc.core import block_hash, commands, scheduler, sequence
from scheduler_svc.core.block_pool import BlockPool
from scheduler_svc.core.replica import InFlight, Replica
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.flight_recorder import replay
from tests.scheduler_svc.core.test_scheduler_properties import explore

Plant = Callable[[pytest.MonkeyPatch], None]


def free_early(patch: pytest.MonkeyPatch) -> None:
    """Blocks go back when a row is to be removed, not when the removal has retired."""
    leave, release = Replica.leave, Replica._release
    freed: set[sequence.Sequence] = set()

    def leave_and_free(self: Replica, leaving: sequence.Sequence, reason: sequence.LeaveReason) -> None:
        leave(self, leaving, reason)
        if leaving.block_ids:
            freed.add(leaving)
            self.pool.free(leaving.block_ids, leaving.request.tenant.index)

    def release_rest(self: Replica, leaving: sequence.Sequence) -> None:
        if leaving in freed:
            freed.remove(leaving)
            leaving.block_ids = []
        release(self, leaving)

    patch.setattr(Replica, "leave", leave_and_free)
    patch.setattr(Replica, "_release", release_rest)
    # Without the core's own check of its books, so that it is seen from outside.
    patch.setattr(BlockPool, "check_integrity", lambda self, tables: None)


def free_at_removal(patch: pytest.MonkeyPatch) -> None:
    """Rows and blocks go back when the command that removes them is sent: a worker in order would not notice."""
    next_command = commands.next_command

    def next_and_free(replica: Replica, now: float, **flags: bool) -> object:
        command = next_command(replica, now, **flags)
        if command is not None:
            replica.release_removed(replica.in_flight[-1])
            replica.in_flight[-1].removed = []
        return command

    patch.setattr(scheduler, "next_command", next_and_free)


def commit_early(patch: pytest.MonkeyPatch) -> None:
    """A prompt's blocks can be found when they are to be computed, not when they have been."""
    prefill = commands._prefill

    def prefill_and_commit(
        replica: Replica, command: object, record: InFlight, num_live: int, **flags: bool
    ) -> None:
        prefill(replica, command, record, num_live, **flags)
        for chosen, end in record.chunks:
            retired, chosen.chunk_retired = chosen.chunk_retired, end
            replica.commit_blocks([chosen])
            chosen.chunk_retired = retired

    patch.setattr(commands, "_prefill", prefill_and_commit)


def all_clients_leave(patch: pytest.MonkeyPatch) -> None:
    """A client that goes takes the other's requests with it."""
    cancel_client = Scheduler.cancel_client

    def cancel_all(self: Scheduler, client: int, now: float) -> None:
        cancel_client(self, client, now)
        for other in {request.client for request in self.requests()}:
            cancel_client(self, other, now)

    patch.setattr(Scheduler, "cancel_client", cancel_all)


def double_free(patch: pytest.MonkeyPatch) -> None:
    """The last block of a table is given back twice where it is shared."""
    free = BlockPool.free

    def free_twice(self: BlockPool, blocks: list[int], owner: int) -> None:
        free(self, blocks, owner)
        if blocks and self.ref_count(blocks[0]) > 0:
            free(self, blocks[:1], owner)

    patch.setattr(BlockPool, "free", free_twice)


def stale_epoch_accepted(patch: pytest.MonkeyPatch) -> None:
    """A worker that restarted is taken for the one before: its blocks are thought to hold their content."""
    connect = Replica.connect

    def connect_as_before(self: Replica, description, lease_epoch: int) -> None:
        if self.description.worker_epoch:
            description.worker_epoch = self.description.worker_epoch
        connect(self, description, lease_epoch)

    patch.setattr(Replica, "connect", connect_as_before)


def hash_without_parent(patch: pytest.MonkeyPatch) -> None:
    """A block is found by its own tokens, whatever came before them."""
    patch.setattr(sequence, "block_hash", lambda parent, tokens: block_hash.block_hash(b"", tokens))


def lost_cancel(patch: pytest.MonkeyPatch) -> None:
    """A cancel of a request that has not got a row is forgotten."""
    cancel = Scheduler.cancel

    def cancel_some(self: Scheduler, client: int, handle: int, now: float) -> None:
        request = self._requests.get(client, handle)
        if request is not None and request.sequences[0].state is sequence.SequenceState.RUNNING:
            cancel(self, client, handle, now)

    patch.setattr(Scheduler, "cancel", cancel_some)


def index_believed(patch: pytest.MonkeyPatch) -> None:
    """What the index says of a worker is taken for true, whoever has used its blocks since."""

    async def everything(entries: object, stub: object, description: object) -> object:
        return entries

    async def sound(standing: object, stub: object) -> bool:
        return True

    patch.setattr(adoption, "_standing", everything)
    patch.setattr(adoption, "_is_sound", sound)


def own_pool_believed(patch: pytest.MonkeyPatch) -> None:
    """A scheduler that gets a worker back goes on as if nobody had used its blocks in between."""

    async def everything(replica: object, stub: object, description: object) -> None:
        return None

    patch.setattr(adoption, "blocks_since", everything)


def prefix_evicted_below_floor(patch: pytest.MonkeyPatch) -> None:
    """The least recently used block is evicted, whosever floor it is within."""

    def oldest(self: BlockPool, owner: int) -> int:
        del owner
        cached = (self._next[sentinel] for sentinel in self._sentinels()[1:])
        return min((block for block in cached if block < self.num_blocks), key=lambda b: self._freed_at[b])

    patch.setattr(BlockPool, "_oldest_cached", oldest)


def floor_unreserved(patch: pytest.MonkeyPatch) -> None:
    """What one tenant's floor keeps free can be taken by any."""
    patch.setattr(BlockPool, "spare", property(lambda self: self.num_free))


@pytest.mark.parametrize(
    ("plant", "finding"),
    [
        (
            free_early,
            "another row's|before its removal|before their removal|while free|cannot be found is shared",
        ),
        (free_at_removal, "before its removal has retired|before their removal has retired"),
        (commit_early, "hold another prefix"),
        (double_free, "reference counts differ|freed twice|before their removal has retired"),
        (stale_epoch_accepted, "hold another prefix"),
        (
            hash_without_parent,
            "hold another prefix|names a block twice|occurs twice in the table|awaited are miscounted",
        ),
        (lost_cancel, "after a cancel"),
        (all_clients_leave, "never ended"),
        (index_believed, "hold another prefix"),
        (own_pool_believed, "hold another prefix"),
        (prefix_evicted_below_floor, "within its floor was evicted|own prefix was evicted before"),
        pytest.param(
            floor_unreserved,
            "below its floor|no block may be taken|blocks asked for",
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_bug_is_found(plant: Plant, finding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ProtocolViolation), match=finding):
        explore(1000, 60, derandomize=True, shrink=False)


def test_a_failure_leaves_a_record_that_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    lost_cancel(monkeypatch)
    with pytest.raises((AssertionError, ProtocolViolation)) as caught:
        explore(300, 60, derandomize=True, shrink=False)
    found = replay(Path(caught.value.__notes__[-1].rpartition(" ")[2]))
    assert found.first_difference == ""
    assert found.num_commands > 0
