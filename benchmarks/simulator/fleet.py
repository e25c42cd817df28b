"""Many schedulers, and a front that sends each request to one of them by what all have published.

A thousand replicas are a hundred schedulers of ten. What a scheduler publishes is what the Redis index holds: the
hashes of its replicas' cached blocks, and how busy each replica is. The front reads it every PERIOD_S, so what it
knows is that old; requests that it has sent since it adds itself.
"""

from collections.abc import Iterator, Sequence

from benchmarks.simulator.node import Node
from quire.packing import unpack_int32
from quire.v1 import scheduler_pb2
from scheduler_svc.core.block_hash import block_hash, root_hash
from scheduler_svc.core.block_pool import NOBODY
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.routing import Load, Offer, Route

PERIOD_S = 0.1
"""Seconds between two readings of what the schedulers publish."""


class SharedIndex:
    """Which replicas hold a block, by its hash.

    A set of replicas is an integer, bit n for replica n: a prompt's blocks may have a thousand holders each, and
    what all of them share is found by a few hundred ANDs.
    """

    def __init__(self) -> None:
        self._holders: dict[bytes, int] = {}

    def read(self, number: int, journal: list[tuple[bytes, int]]) -> None:
        """Take in, and empty, what a replica's pool has noted."""
        for name, block in journal:
            others = self._holders.get(name, 0) & ~(1 << number)
            if block != NOBODY:
                self._holders[name] = others | 1 << number
            elif others:
                self._holders[name] = others
            else:
                self._holders.pop(name, None)
        journal.clear()

    def prefix_blocks(self, token_ids: bytes, root: bytes, block_size: int) -> dict[int, int]:
        """How many leading blocks of a prompt (int32[n]) each replica holds; those that hold none are left out.

        The last token is never looked up: it is always computed.
        """
        found: dict[int, int] = {}
        block_bytes = 4 * block_size
        most = (len(token_ids) - 4) // block_bytes
        name, holding, length = root, -1, 0
        while holding and length < most:
            name = block_hash(name, token_ids[length * block_bytes : (length + 1) * block_bytes])
            still = holding & self._holders.get(name, 0)
            if length:
                found |= dict.fromkeys(_members(holding & ~still), length)
            holding = still
            length += 1
        if length:
            found |= dict.fromkeys(_members(holding), length)
        return found


def _members(holders: int) -> Iterator[int]:
    while holders:
        lowest = holders & -holders
        yield lowest.bit_length() - 1
        holders ^= lowest


class Fleet:
    """Chooses the node for each request."""

    def __init__(self, nodes: Sequence[Node], route: Route) -> None:
        self._route = route
        self._nodes = nodes
        self._index = SharedIndex()
        self._read_at = -PERIOD_S
        self._replicas: list[Replica] = []
        self._node_of: list[int] = []
        for number, node in enumerate(nodes):
            for replica in node.scheduler.replicas.values():
                replica.pool.journal = []
                self._replicas.append(replica)
                self._node_of.append(number)
        # Zeros make the order of names that of numbers.
        self._names = [f"{number:06}" for number in range(len(self._replicas))]
        self._loads = [replica.load for replica in self._replicas]

    def choose(self, order: int, request: scheduler_pb2.TokenRequest, now: float) -> int:
        """The node for the request with this arrival number."""
        if now - self._read_at >= PERIOD_S:
            self._read_at = now
            self._read()
        prompt = request.prompt_token_ids
        description = self._replicas[0].description
        root = root_hash(description.model.revision, request.tenant, request.cache_salt)
        cached = self._index.prefix_blocks(prompt, root, description.block_size)
        length = len(unpack_int32(prompt))
        offers = [Offer(name, load, length) for name, load in zip(self._names, self._loads, strict=True)]
        for number, blocks in cached.items():
            offers[number] = offers[number]._replace(uncached=length - blocks * description.block_size)
        chosen = min(offers, key=lambda offer: self._route(order, offer))
        number, load = int(chosen.name), chosen.load
        self._loads[number] = Load(load.backlog + chosen.uncached, load.rows + 1)
        return self._node_of[number]

    def _read(self) -> None:
        waiting = [node.scheduler.queue.num_tokens // len(node.workers) for node in self._nodes]
        for number, replica in enumerate(self._replicas):
            backlog, rows = replica.load
            # What waits for a row is not on a replica yet, but ahead of a newcomer all the same.
            self._loads[number] = Load(backlog + waiting[self._node_of[number]], rows)
            if replica.pool.journal:
                self._index.read(number, replica.pool.journal)
