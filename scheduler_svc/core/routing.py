"""Which replica a sequence goes to.

The cost of a replica for a sequence is the time until its first token there, in seconds:

    cost = (uncached + backlog + ROW_TOKENS * rows) * token_s

where `uncached` are the sequence's positions whose KV the replica does not have (nor is computing), `backlog`
the prompt positions of others that it still has to compute, `rows` the sequences it runs, each of which slows
every step by about as much as ROW_TOKENS prompt positions, and `token_s` its measured time per prompt position.
So a long cached prefix draws a sequence to a replica until the others wait less. The same function chooses
between the replicas of several schedulers (`scheduler_svc/redirection.py`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

ROW_TOKENS = 8
_UNKNOWN_TOKEN_S = 1e-4


class Load(NamedTuple):
    """How busy a replica is."""

    backlog: int
    """Prompt positions of placed sequences still to compute."""
    rows: int
    """Sequences on it."""
    token_s: float
    """Seconds per prompt position, 0 while unknown."""


class Offer(NamedTuple):
    """A replica that could take a sequence."""

    name: str
    load: Load
    uncached: int
    """Positions that it would have to compute."""


def cost_s(offer: Offer) -> float:
    """Seconds until the first token, as the module says."""
    load = offer.load
    work = offer.uncached + load.backlog + ROW_TOKENS * load.rows
    return work * (load.token_s or _UNKNOWN_TOKEN_S)


Route = Callable[[int, Sequence[Offer]], Offer]
"""Picks one of at least one offers for the sequence with this arrival number."""


def cheapest(order: int, offers: Iterable[Offer]) -> Offer:
    """The offer of the lowest cost; the first of equals in the order of names."""
    return min(offers, key=lambda offer: (cost_s(offer), offer.name))
