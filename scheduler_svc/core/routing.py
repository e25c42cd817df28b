"""Which replica a sequence goes to.

The cost of a replica for a sequence is the work before its first token there, in token positions:

    cost = uncached + backlog + ROW_POSITIONS * rows

where `uncached` are the sequence's positions whose KV the replica does not have (nor is computing), `backlog`
the prompt positions of others that it still has to compute, and `rows` the sequences it runs, each of which slows
every step by about as much as ROW_POSITIONS prompt positions. So a long cached prefix draws a sequence to a
replica until the others wait less. Positions, not seconds: the replicas of a model are alike, and the noise in
their measured speeds would send work astray. The same function chooses between the replicas of several
schedulers (`scheduler_svc/redirection.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

ROW_POSITIONS = 8


class Load(NamedTuple):
    """How busy a replica is."""

    backlog: int
    """Prompt positions of placed sequences still to compute."""
    rows: int
    """Sequences on it."""


class Offer(NamedTuple):
    """A replica that could take a sequence."""

    name: str
    load: Load
    uncached: int
    """Positions that it would have to compute."""


def cost(offer: Offer) -> int:
    """Positions before the first token, as the module says."""
    return offer.uncached + offer.load.backlog + ROW_POSITIONS * offer.load.rows


Route = Callable[[int, Offer], tuple[int | str, ...]]
"""The rank of an offer for the sequence with this arrival number: the lowest is taken, and no two are equal."""


def cheapest(order: int, offer: Offer) -> tuple[int | str, ...]:
    """By cost; of equals the first in the order of names."""
    return cost(offer), offer.name
