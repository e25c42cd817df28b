"""What a replica's commands take, by its measured speed: when to send the next, and how large a step may be."""

from math import ceil, inf

from scheduler_svc.core.chunking import chunk_budget
from scheduler_svc.core.replica import Replica

# A command that only decodes is sent so long before those in flight are done: what the last result's and its own way
# take, a timer's grain, and what scheduler and worker compute for each row. With it an H200 stood still for 0.5 % of
# the time at 256 rows; 3 ms for any number of rows was never measured apart from another cause of gaps.
_SEND_AHEAD_S = 0.003
_SEND_AHEAD_PER_ROW_S = 0.00003


def decode_at(replica: Replica) -> float:
    """When the next command that only decodes is to be sent, in seconds; -inf: at once.

    Sent earlier it would stand before the prompts that come in the meantime. What is in flight takes at least as
    long as its prompts or its decoding alone, so that the worker is not kept waiting.
    """
    if not replica.in_flight:
        return -inf
    speed = replica.speed
    least_s = sum(
        max(record.decode_steps * speed.decode_step_s, record.prefill_tokens * speed.prefill_token_s)
        for record in replica.in_flight
    )
    ahead_s = _SEND_AHEAD_S + replica.num_rows_taken * _SEND_AHEAD_PER_ROW_S
    return _begun(replica) + least_s - ahead_s


def in_flight_s(replica: Replica, now: float) -> float:
    """Seconds after `now` that the commands in flight will take, as far as is known."""
    if not replica.in_flight:
        return 0.0
    speed = replica.speed
    first, *others = (
        record.decode_steps * speed.decode_step_s + record.prefill_tokens * speed.prefill_token_s
        for record in replica.in_flight
    )
    return max(0.0, _begun(replica) + first - now) + sum(others)


def _begun(replica: Replica) -> float:
    """When the worker began with the first of the commands in flight."""
    return max(replica.in_flight[0].sent_at, replica.retired_at)


def prompt_positions(replica: Replica, num_live: int, *, is_shared: bool) -> int:
    """Prompt positions that the next step takes beside `num_live` rows that decode.

    `is_shared`: several tenants are served, so steps with prompts are kept short.
    """
    limits, speed = replica.limits, replica.speed
    bounds = [limits.itl_target_s] if num_live else []
    if is_shared:
        bounds.append(limits.shared_step_s)
    return chunk_budget(
        replica.max_step_tokens - num_live,
        step_s=min((bound for bound in bounds if bound > 0.0), default=0.0),
        decode_step_s=speed.decode_step_s if num_live else 0.0,
        prefill_token_s=speed.prefill_token_s,
    )


def prefill_s(replica: Replica, num_tokens: float, *, is_shared: bool) -> float:
    """Seconds that so many prompt positions take beside what runs now; only if the speed is known."""
    return _in_chunks_s(replica, num_tokens, _chunk(replica, is_shared=is_shared))


def tokens_per_s(replica: Replica, *, is_shared: bool) -> float:
    """Prompt positions per second beside what runs now, 0 while unknown."""
    if replica.speed.prefill_token_s <= 0.0:
        return 0.0
    chunk = _chunk(replica, is_shared=is_shared)
    return chunk / _in_chunks_s(replica, chunk, chunk)


def _chunk(replica: Replica, *, is_shared: bool) -> int:
    """Prompt positions of a step, at least one, beside what runs now."""
    return max(1, prompt_positions(replica, replica.rows.num_live, is_shared=is_shared))


def _in_chunks_s(replica: Replica, num_tokens: float, chunk: int) -> float:
    speed = replica.speed
    return num_tokens * speed.prefill_token_s + ceil(num_tokens / chunk) * speed.decode_step_s
