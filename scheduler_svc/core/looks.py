"""What a replica can do for a sequence that waits: how much of it is cached there, and what keeps it from a row.

A look is remembered by the replica until its rows, blocks or prompts change: ten replicas are asked about the same
sequences more often than that.
"""

from typing import NamedTuple

from scheduler_svc.core.replica import Replica
from scheduler_svc.core.routing import Offer
from scheduler_svc.core.sequence import QueueCause, Sequence, SequenceState

# An idle replica is asked about sequences that others take, and need not remember all of them.
_MAX_LOOKS = 1024


class Prefix(NamedTuple):
    """What a replica has of a sequence's tokens."""

    num_cached: int
    """Blocks of its longest cached prefix."""
    num_coming: int
    """Blocks after those that another sequence is computing now."""


class Look(NamedTuple):
    """What a replica can do for a waiting sequence."""

    num_tokens: int
    """That the sequence had."""
    prefix: Prefix
    obstacle: QueueCause | None
    offer: Offer
    is_open: bool
    """Whether it could take the sequence, or is computing its prefix."""


def look(replica: Replica, sequence: Sequence) -> Look:
    """What it can do for a waiting sequence now; remembered until something changes there."""
    known = replica.looks.get(sequence)
    if known is None or known.num_tokens != len(sequence.token_ids):
        if len(replica.looks) >= _MAX_LOOKS:
            replica.looks.clear()
        known = replica.looks[sequence] = _look_anew(replica, sequence)
    return known


def _look_anew(replica: Replica, sequence: Sequence) -> Look:
    prefix = find_prefix(replica, sequence)
    cause = obstacle(replica, sequence, prefix)
    offer = Offer(replica.name, replica.load, num_uncached(replica, sequence, prefix))
    return Look(len(sequence.token_ids), prefix, cause, offer, cause is None or cause is QueueCause.PREFIX)


def find_prefix(replica: Replica, sequence: Sequence) -> Prefix:
    """The sequence's longest known prefix; its last token is always left to compute."""
    most = (len(sequence.token_ids) - 1) // replica.block_size
    hashes = sequence.block_hashes
    if len(hashes) < most:
        hashes = sequence.hash_blocks(most, replica.block_size)
    cached = sequence.prefix_memory.length(replica.name, replica.pool, hashes, most)
    return Prefix(cached, replica.coming.num_leading(hashes, cached, most, sequence.request.priority))


def num_uncached(replica: Replica, sequence: Sequence, prefix: Prefix) -> int:
    """Positions that the replica would have to compute for the sequence itself."""
    return len(sequence.token_ids) - (prefix.num_cached + prefix.num_coming) * replica.block_size


def obstacle(replica: Replica, sequence: Sequence, prefix: Prefix) -> QueueCause | None:
    """What keeps the sequence from a row here; None: nothing."""
    if not replica.fits(sequence):
        return QueueCause.WORKER
    uncached = len(sequence.token_ids) - prefix.num_cached * replica.block_size
    if prefix.num_coming * replica.block_size * 2 > uncached:
        # Waiting saves more than half of what it would compute now.
        return QueueCause.PREFIX
    if replica.num_rows_free <= 0:
        return QueueCause.ROWS
    tenant = sequence.request.tenant
    if tenant.index in replica.ceilings and _would_hold(replica, sequence, prefix) > replica.ceiling(
        tenant.index
    ):
        return QueueCause.TENANT
    room = replica.pool.available(tenant.index)
    if not _needs_more(replica, sequence, prefix, room - replica.num_rows_taken):
        return None
    return (
        QueueCause.BLOCKS
        if _needs_more(replica, sequence, prefix, room - _margin(replica, sequence, prefix))
        else None
    )


def _would_hold(replica: Replica, sequence: Sequence, prefix: Prefix) -> int:
    """Blocks that the sequence's tenant would hold with it, and one more for each that it runs, for they grow."""
    pool, index = replica.pool, sequence.request.tenant.index
    own = replica.blocks_for(len(sequence.token_ids)) - prefix.num_cached
    own += sum(pool.is_new_to(block, index) for block in cached_blocks(replica, sequence, prefix))
    own += sum(1 for other in replica.running() if other.request.tenant.index == index)
    return pool.held.get(index, 0) + own


def _margin(replica: Replica, sequence: Sequence, prefix: Prefix) -> int:
    """Free blocks to leave: one for each row that runs, lest the newcomer be preempted as soon as it has come.

    Rows of lower priority would give way to it; and what a floor keeps is its own whatever runs.
    """
    if not _needs_more(replica, sequence, prefix, replica.pool.reserved(sequence.request.tenant.index)):
        return 0
    return replica.rows.num_not_below(sequence.request.priority)


def num_blocks_needed(replica: Replica, sequence: Sequence, prefix: Prefix) -> int:
    """Free blocks that the sequence would take for its tokens so far."""
    pool = replica.pool
    needed = replica.blocks_for(len(sequence.token_ids)) - prefix.num_cached
    return needed + sum(1 for block in cached_blocks(replica, sequence, prefix) if pool.ref_count(block) == 0)


def _needs_more(replica: Replica, sequence: Sequence, prefix: Prefix, room: int) -> bool:
    """Whether `num_blocks_needed` is more than `room`; walks the prefix only if it depends on who holds it."""
    most = replica.blocks_for(len(sequence.token_ids))
    if most <= room or most - prefix.num_cached > room:
        return most > room
    return num_blocks_needed(replica, sequence, prefix) > room


def cached_blocks(replica: Replica, sequence: Sequence, prefix: Prefix) -> list[int]:
    """Those that hold the sequence's prefix, from the root on."""
    return replica.pool.find(sequence.hash_blocks(prefix.num_cached, replica.block_size))


def check_integrity(replica: Replica) -> None:
    """Assert that what is remembered of those that wait is what one would find anew."""
    for sequence, known in replica.looks.items():
        if sequence.state is SequenceState.WAITING and known.num_tokens == len(sequence.token_ids):
            assert known == _look_anew(replica, sequence), "what it can do for a sequence changed unnoticed"
            hashes = sequence.hash_blocks((known.num_tokens - 1) // replica.block_size, replica.block_size)
            walked = next((n for n, h in enumerate(hashes) if replica.pool.lookup(h) is None), len(hashes))
            assert walked == known.prefix.num_cached, "a remembered prefix is not the one that is cached"
