"""Seconds to a request's first token on one replica, from what is ahead of it there and how fast that is computed.

First comes what is left of the commands in flight; then the prompts placed there and the request's own, in steps
of as many positions as one takes beside what decodes. Under fair queueing a tenant waits for its own prompts at its
share of the speed, or for everybody's at the whole speed, whichever is less; and short prompts have half of each
step before long ones do.
"""

from scheduler_svc.core.looks import find_prefix, num_uncached
from scheduler_svc.core.pace import in_flight_s, prefill_s
from scheduler_svc.core.queue import WaitingQueue
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.sequence import Request
from scheduler_svc.core.tenants import Tenant


def first_token_s(
    tenant: Tenant, own: int, replica: Replica, share: float, *, is_shared: bool, now: float
) -> float:
    """Predicted seconds if nothing else waited for a row; 0 while the replica's speed is unknown.

    `own`: the request's prompt positions to compute there; `share`: the tenant's weight over the weights of all
    that are active.
    """
    if replica.speed.prefill_token_s <= 0.0:
        return 0.0
    short = replica.limits.short_prompt_tokens
    left = [(s.num_prefill_left, s.request.tenant) for s in replica.prefilling]
    ahead = min(
        sum(count for count, _ in left) + own,
        (sum(count for count, owner in left if owner is tenant) + own) / share,
    )
    if own <= short:
        ahead = min(ahead, 2.0 * (sum(count for count, _ in left if count <= short) + own))
    return in_flight_s(replica, now) + prefill_s(replica, ahead, is_shared=is_shared)


def uncached(request: Request, replica: Replica, queue: WaitingQueue) -> list[int]:
    """Prompt positions that a replica would have to compute for each sequence of a new request.

    What one that waits begins with too is that one's to compute: of a burst under one new prompt only the first pays.
    """
    first, *others = request.sequences
    block_size, prefix = replica.block_size, find_prefix(replica, first)
    known = prefix.num_cached + prefix.num_coming
    awaited = queue.blocks.num_leading(first.block_hashes, known, (len(first.token_ids) - 1) // block_size)
    # The others find what the first computes, but for their last block.
    return [
        num_uncached(replica, first, prefix) - awaited * block_size,
        *(len(sequence.token_ids) % block_size or 1 for sequence in others),
    ]
