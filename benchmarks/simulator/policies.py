"""Ways to choose a replica: the core's own cost function, and what it is compared with."""

from collections.abc import Sequence

from scheduler_svc.core.routing import Offer, Route, cheapest


def round_robin(order: int, offers: Sequence[Offer]) -> Offer:
    """Each in turn, in the order of names."""
    return sorted(offers, key=lambda offer: offer.name)[order % len(offers)]


def least_loaded(order: int, offers: Sequence[Offer]) -> Offer:
    """The one with the fewest sequences, then the least left to compute; cached prefixes do not count."""
    return min(offers, key=lambda offer: (offer.load.rows, offer.load.backlog, offer.name))


def longest_prefix(order: int, offers: Sequence[Offer]) -> Offer:
    """The one that has most of the prompt cached, then the least loaded; load does not count otherwise."""
    return min(offers, key=lambda offer: (offer.uncached, offer.load.rows, offer.name))


POLICIES: dict[str, Route] = {
    "cost": cheapest,
    "round_robin": round_robin,
    "least_loaded": least_loaded,
    "longest_prefix": longest_prefix,
}
