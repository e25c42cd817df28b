"""Ways to choose a replica: the core's own cost function, and what it is compared with."""

from collections.abc import Callable
from functools import partial

from scheduler_svc.core.routing import Offer, Route, cheapest


def round_robin(count: int, order: int, offer: Offer) -> tuple[int | str, ...]:
    """Each of `count` in turn; their names end with their numbers."""
    return (int(offer.name.rpartition("-")[2]) - order) % count, offer.name


def least_loaded(order: int, offer: Offer) -> tuple[int | str, ...]:
    """The one with the fewest sequences, then the least left to compute; cached prefixes do not count."""
    return offer.load.rows, offer.load.backlog, offer.name


def longest_prefix(order: int, offer: Offer) -> tuple[int | str, ...]:
    """The one that has most of the prompt cached, then the least loaded; load does not count otherwise."""
    return offer.uncached, offer.load.rows, offer.name


POLICIES: dict[str, Callable[[int], Route]] = {
    "cost": lambda count: cheapest,
    "round_robin": lambda count: partial(round_robin, count),
    "least_loaded": lambda count: least_loaded,
    "longest_prefix": lambda count: longest_prefix,
}
"""Of each the route between so many replicas."""
