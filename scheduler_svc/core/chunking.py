"""How much one command does: the token budget shared over prompts, and the length of a decode burst."""

from collections.abc import Iterable


def share_budget(left: Iterable[int], budget: int) -> list[int]:
    """Split `budget` token positions over prompts with `left[i]` positions to compute, first come first.

    Returns the sizes for a prefix of the prompts, each at least 1. Decode rows were served before: the budget
    is what they leave.
    """
    sizes: list[int] = []
    for num_left in left:
        if budget <= 0:
            break
        size = min(num_left, budget)
        sizes.append(size)
        budget -= size
    return sizes


def decode_burst(step_s: float, burst_s: float, max_steps: int) -> int:
    """Decode steps for one command, such that they take about `burst_s` seconds together, at least 1.

    `step_s` is the measured time of one step; 0 while unknown, which asks for one step to measure.
    """
    if step_s <= 0.0:
        return 1
    return max(1, min(max_steps, int(burst_s / step_s)))
