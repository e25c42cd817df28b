"""What the next command to a replica holds: removals, additions, blocks, prompt chunks and decode steps."""

import numpy as np
from numpy.typing import NDArray

from quire.packing import pack_int32, pack_uint32
from quire.v1 import worker_pb2
from scheduler_svc.core.chunking import decode_burst, share_budget
from scheduler_svc.core.pace import decode_at, prompt_positions
from scheduler_svc.core.preemption import victim_of_shortage
from scheduler_svc.core.replica import InFlight, Replica
from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.tenants import PROMPT_TOKEN_COST

Rows = NDArray[np.intp]


def next_command(
    replica: Replica, now: float, *, prompts_wait: bool, is_shared: bool
) -> worker_pb2.StepCommand | None:
    """The next command, or None if there is nothing to do, the pipeline is full, or it is too early.

    `prompts_wait`: there is work in the queue, so runs of several decode steps would delay it. `is_shared`: several
    tenants are served, so steps with prompts are kept short, lest one's prompts hold up the other's.
    """
    if not replica.has_room or (not replica.prefilling and now < decode_at(replica)):
        return None
    preempt_ahead(replica)
    rows = replica.rows
    live = rows.live()
    decode_steps = _decode_steps(replica, live, prompts_wait=prompts_wait)
    short = rows.blocks_short(live, decode_steps)
    if _shortage(replica, live, short) > 0:
        # Blocks are on their way back; rows must not decode without, and decoding is all or none.
        live, short, decode_steps = live[:0], short[:0], 0
    if not decode_steps and not replica.prefilling and not replica.to_remove:
        return None
    record = InFlight(step_id=replica.last_step_sent + 1, decode_steps=decode_steps)
    command = worker_pb2.StepCommand(
        step_id=record.step_id, lease_epoch=replica.lease_epoch, decode_steps=decode_steps
    )
    if replica.to_remove:
        command.remove_rows = pack_uint32([sequence.row for sequence in replica.to_remove])
        record.removed, replica.to_remove = replica.to_remove, []
    _add_rows(replica, command)
    if short.any():
        _append_blocks(replica, command, live, short)
    rows.advance(live, decode_steps)
    _prefill(replica, command, record, len(live), is_shared=is_shared)
    replica.note_sent(record)
    return command


def preempt_ahead(replica: Replica) -> None:
    """Preempt while those that decode would run out of blocks within the pipeline's depth.

    Looking ahead gives a removal time to retire before its blocks are needed.
    """
    ahead = 1 + replica.pipeline_depth
    while True:
        live = replica.rows.live()
        short = replica.rows.blocks_short(live, ahead)
        if _shortage(replica, live, short) <= 0:
            return
        victim = victim_of_shortage(_contenders(replica, live, short))
        if victim is None:
            return
        replica.preempt(victim)


def _shortage(replica: Replica, live: Rows, short: NDArray[np.int64]) -> int:
    """Blocks too few for `live` rows to get `short` more each; counts what floors keep, and ceilings forbid."""
    total = int(short.sum())
    pool, rows = replica.pool, replica.rows
    if total == 0 or not (pool.has_floors or replica.ceilings):
        return total - pool.num_free
    unreserved, over = 0, 0
    for index, needed in rows.by_tenant(live, short):
        unreserved += max(0, needed - pool.reserved(index))
        over = max(over, pool.held.get(index, 0) + needed - replica.ceiling(index))
    return max(unreserved - pool.spare, over)


def _contenders(replica: Replica, live: Rows, short: NDArray[np.int64]) -> list[Sequence]:
    """Running sequences whose removal would help against a shortage; none if enough comes back without it."""
    pool, running = replica.pool, list(replica.running())
    if not (pool.has_floors or replica.ceilings):
        enough = int(short.sum()) <= pool.num_free + replica.num_returning_to()
        return [] if enough else running
    returning, needed = replica.returning(), dict(replica.rows.by_tenant(live, short))
    for index, count in needed.items():
        if pool.held.get(index, 0) + count - returning[index] > replica.ceiling(index):
            own = [s for s in running if s.request.tenant.index == index]
            if len(own) > 1:
                return own
    unreserved = sum(max(0, count - pool.reserved(index)) for index, count in needed.items())
    if unreserved <= pool.spare + replica.num_returning_to():
        return []
    # Those whose tenants hold more than is kept for them, or are about to.
    return [
        s
        for s in running
        if pool.is_above_floor(s.request.tenant.index, needed.get(s.request.tenant.index, 0))
    ]


def _decode_steps(replica: Replica, live: Rows, *, prompts_wait: bool) -> int:
    if len(live) == 0:
        return 0
    if prompts_wait or replica.prefilling:
        return 1
    rows, limits = replica.rows, replica.limits
    most = min(limits.max_decode_steps, replica.description.max_decode_steps)
    if most > 1:
        # No step is issued past the limit of the row that has furthest to go.
        most = min(most, int((rows.max_total_tokens[live] - rows.num_issued[live]).max()))
    speed = replica.speed
    steps = decode_burst(speed.decode_step_s, limits.decode_burst_s, most, command_s=speed.command_s)
    while steps > 1 and _shortage(replica, live, rows.blocks_short(live, steps)) > 0:
        steps //= 2
    return steps


def _add_rows(replica: Replica, command: worker_pb2.StepCommand) -> None:
    for sequence in replica.to_add:
        command.add_rows.add(
            row=sequence.row,
            epoch=int(replica.rows.epochs[sequence.row]),
            token_ids=sequence.token_ids.tobytes(),
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_computed_tokens=sequence.num_cached_here,
            block_ids=pack_int32(sequence.block_ids),
            max_total_tokens=sequence.max_total_tokens,
            sampling=sequence.sampling,
            trace=sequence.request.trace,
        )
        first_new = sequence.num_cached_here // replica.block_size
        _note_assigned(replica, sequence.block_ids[first_new:], command.step_id)
    replica.to_add.clear()


def _append_blocks(
    replica: Replica, command: worker_pb2.StepCommand, live: Rows, short: NDArray[np.int64]
) -> None:
    needy = np.flatnonzero(short)
    rows, counts = live[needy], short[needy]
    replica.rows.num_blocks[rows] += counts
    appended: list[int] = []
    for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
        sequence = replica.rows.sequences[row]
        assert sequence is not None
        block_ids = replica.pool.allocate(count, sequence.request.tenant.index)
        sequence.block_ids += block_ids
        appended += block_ids
    command.append_rows = pack_uint32(rows)
    command.append_num_blocks = pack_uint32(counts)
    command.append_block_ids = pack_int32(appended)
    _note_assigned(replica, appended, command.step_id)


def _note_assigned(replica: Replica, block_ids: list[int], step_id: int) -> None:
    tag = (replica.lease_epoch, step_id)
    for block in block_ids:
        replica.assigned[block] = tag


def _prefill(
    replica: Replica, command: worker_pb2.StepCommand, record: InFlight, num_live: int, *, is_shared: bool
) -> None:
    """Chunks of prompts: by priority, then the tenant served least, then age; short ones are not held up."""
    if not replica.prefilling:
        return
    budget = prompt_positions(replica, num_live, is_shared=is_shared)
    waiting = sorted(
        replica.prefilling, key=lambda s: (s.request.priority, s.request.tenant.service, s.order)
    )
    sizes = share_budget([s.num_prefill_left for s in waiting], budget, replica.limits.short_prompt_tokens)
    chosen = [(sequence, size) for sequence, size in zip(waiting, sizes, strict=True) if size]
    record.prefill_tokens = sum(sizes)
    command.prefill_rows = pack_uint32([sequence.row for sequence, _ in chosen])
    command.prefill_num_tokens = pack_uint32([size for _, size in chosen])
    for sequence, size in chosen:
        tenant = sequence.request.tenant
        tenant.num_pending -= size
        replica.backlog -= size
        # What it lost by preemption it does not pay for twice.
        fresh = max(0, sequence.chunk_end + size - max(sequence.chunk_end, sequence.high_water))
        tenant.service += fresh * PROMPT_TOKEN_COST / tenant.weight
        sequence.chunk_end += size
        record.chunks.append((sequence, sequence.chunk_end))
        if sequence.num_prefill_left == 0:
            replica.rows.begin_decoding(sequence.row, max(1, record.decode_steps))
    replica.prefilling = [sequence for sequence in replica.prefilling if sequence.num_prefill_left]
