"""How much one command does: the token budget shared over prompts, and the length of a decode burst."""

from collections.abc import Sequence
from math import ceil

# A step that decodes takes at least so many prompt positions: below it, its fixed cost is most of it.
MIN_CHUNK_TOKENS = 64
_UNHIDDEN = 0.25
"""Share of a step for which the device may stand still."""
_MOST_HIDING_S = 0.0025
"""Seconds that the steps of a command may take to hide its own time: so far apart may tokens come."""


def chunk_budget(max_tokens: int, *, step_s: float, decode_step_s: float, prefill_token_s: float) -> int:
    """Prompt positions for a step that is to take about `step_s` seconds; 0: no bound.

    `decode_step_s` is the measured time of a step that only decodes, `prefill_token_s` what each prompt position
    adds; 0 while unknown, which sets no bound. Prompts get at least as long as decoding takes, so that where a
    step is slow anyway they get on too. At most `max_tokens`, at least MIN_CHUNK_TOKENS of them.
    """
    if prefill_token_s <= 0.0 or step_s <= 0.0:
        return max_tokens
    prefill_s = max(step_s - decode_step_s, decode_step_s)
    return min(max_tokens, max(MIN_CHUNK_TOKENS, int(prefill_s / prefill_token_s)))


def share_budget(left: Sequence[int], budget: int, short: int) -> list[int]:
    """Split `budget` token positions over prompts with `left[i]` positions to compute, in order of their claim.

    Prompts of at most `short` positions may take half of the budget, in order, before a longer one ahead of them
    gets the rest: a long prompt cannot hold up short ones, nor they it. Returns sizes [len(left)], 0 for those
    that get nothing.
    """
    sizes = [0] * len(left)
    rest = max(0, budget)
    first_long = next((i for i, n in enumerate(left) if n > short), len(left))
    quick = rest // 2
    for i in range(first_long + 1, len(left)):
        if left[i] <= short:
            sizes[i] = min(left[i], quick)
            quick -= sizes[i]
            rest -= sizes[i]
    for i, num_left in enumerate(left):
        if rest == 0:
            break
        more = min(num_left - sizes[i], rest)
        sizes[i] += more
        rest -= more
    return sizes


def decode_burst(step_s: float, burst_s: float, max_steps: int, *, command_s: float = 0.0) -> int:
    """Decode steps for one command, such that they take about `burst_s` seconds together, at least 1.

    Or as long as a command takes anyway, `command_s`, if that is more: else the device would stand still. That is
    so for short steps alone, and for a `burst_s` that is not 0. `step_s` is the measured time of one step; 0 while
    unknown, which asks for one step to measure.
    """
    if step_s <= 0.0 or burst_s <= 0.0:
        return 1
    hiding = min(int(_MOST_HIDING_S / step_s), ceil(command_s / step_s - _UNHIDDEN))
    return max(1, min(max_steps, max(int(burst_s / step_s), hiding)))
