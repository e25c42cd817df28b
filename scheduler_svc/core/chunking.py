"""How much one command does: the token budget shared over prompts, and the length of a decode burst."""

from collections.abc import Sequence

# A step that decodes takes at least so many prompt positions: below it, its fixed cost is most of it.
MIN_CHUNK_TOKENS = 64


def chunk_budget(
    max_tokens: int, *, itl_target_s: float, decode_step_s: float, prefill_token_s: float
) -> int:
    """Prompt positions for a step in which rows decode, such that it takes about `itl_target_s` seconds.

    `decode_step_s` is the measured time of a step that only decodes, `prefill_token_s` what each prompt position
    adds; 0 while unknown, which sets no bound. At most `max_tokens`, at least MIN_CHUNK_TOKENS of them.
    """
    if prefill_token_s <= 0.0 or itl_target_s <= 0.0:
        return max_tokens
    return min(max_tokens, max(MIN_CHUNK_TOKENS, int((itl_target_s - decode_step_s) / prefill_token_s)))


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
        if left[i] <= short and left[i] <= quick:
            sizes[i] = left[i]
            quick -= left[i]
            rest -= left[i]
    for i, num_left in enumerate(left):
        if rest == 0:
            break
        if sizes[i] == 0:
            sizes[i] = min(num_left, rest)
            rest -= sizes[i]
    return sizes


def decode_burst(step_s: float, burst_s: float, max_steps: int) -> int:
    """Decode steps for one command, such that they take about `burst_s` seconds together, at least 1.

    `step_s` is the measured time of one step; 0 while unknown, which asks for one step to measure.
    """
    if step_s <= 0.0:
        return 1
    return max(1, min(max_steps, int(burst_s / step_s)))
