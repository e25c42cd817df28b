"""The front of a fleet knows what schedulers publish, and nothing newer."""

import numpy as np
import pytest

from benchmarks.simulate import make_node
from benchmarks.simulator.fleet import PERIOD_S, Fleet, SharedIndex
from benchmarks.simulator.policies import POLICIES
from benchmarks.simulator.recorder import Outcome
from benchmarks.simulator.run import Simulation
from benchmarks.simulator.step_time import SHAPES
from benchmarks.simulator.traces import Conversation, Draw, Trace, Turn, chat
from quire.packing import pack_int32
from quire.v1 import scheduler_pb2
from scheduler_svc.core.block_hash import block_hash, root_hash
from scheduler_svc.core.block_pool import NOBODY
from scheduler_svc.core.routing import Load, Offer, cheapest

SHAPE = SHAPES["llama-8b"]
ROOT = root_hash("r", "t", "")


def hashes(token_ids: bytes, count: int, block_size: int = 4) -> list[bytes]:
    """Of the leading blocks."""
    names, parent = [], ROOT
    for block in range(count):
        parent = block_hash(parent, token_ids[block * 4 * block_size : (block + 1) * 4 * block_size])
        names.append(parent)
    return names


class TestSharedIndex:
    def test_each_replica_counts_with_the_prefix_that_it_holds_without_a_gap(self) -> None:
        prompt = pack_int32(range(17))
        names = hashes(prompt, 4)
        index = SharedIndex()
        index.read(0, [(name, 5) for name in names])
        index.read(1, [(names[0], 1), (names[1], 2)])
        index.read(2, [(names[1], 3)])
        assert index.prefix_blocks(prompt, ROOT, 4) == {0: 4, 1: 2}

    def test_evicted_blocks_are_forgotten_and_the_journal_is_emptied(self) -> None:
        prompt = pack_int32(range(9))
        names = hashes(prompt, 2)
        index, journal = SharedIndex(), [(names[0], 1), (names[1], 2), (names[1], NOBODY)]
        index.read(7, journal)
        assert journal == []
        assert index.prefix_blocks(prompt, ROOT, 4) == {7: 1}

    def test_a_holder_that_lacks_a_block_counts_no_further_whoever_else_goes_on(self) -> None:
        prompt = pack_int32(range(4 * 300 + 1))
        names = hashes(prompt, 300)
        index = SharedIndex()
        for number in range(0, 1000, 7):
            index.read(number, [(name, 1) for name in names[: number % 301]])
        expected = {number: number % 301 for number in range(0, 1000, 7) if number % 301}
        assert index.prefix_blocks(prompt, ROOT, 4) == expected

    def test_the_last_token_is_never_counted_as_cached(self) -> None:
        prompt = pack_int32(range(8))
        index = SharedIndex()
        index.read(0, [(name, 1) for name in hashes(prompt, 2)])
        assert index.prefix_blocks(prompt, ROOT, 4) == {0: 1}


class TestFleet:
    def test_a_known_prefix_draws_a_request_to_the_scheduler_that_holds_it(self) -> None:
        prompt, other = np.arange(400, dtype=np.int32), np.arange(1000, 1400, dtype=np.int32)
        nodes = [make_node(SHAPE, 1, 200, name=name) for name in "ab"]
        fleet = Fleet(nodes, cheapest)
        asked = [Conversation(float(at), (Turn(tokens, 4),)) for at, tokens in ((0, prompt), (0, other))]
        Simulation(Trace("two", tuple(asked)), nodes, fleet).run()
        for tokens, node in ((prompt, 0), (other, 1)):
            request = scheduler_pb2.TokenRequest(prompt_token_ids=pack_int32(tokens), tenant="default")
            assert fleet.choose(9, request, 5.0) == node

    def test_requests_of_one_period_spread_although_nothing_new_is_read(self) -> None:
        nodes = [make_node(SHAPE, 2, 200, name=name) for name in "abc"]
        fleet = Fleet(nodes, cheapest)
        chosen = []
        for number in range(6):
            prompt = pack_int32(np.arange(number * 100, number * 100 + 64))
            request = scheduler_pb2.TokenRequest(prompt_token_ids=prompt)
            chosen.append(fleet.choose(number, request, 1.0 + PERIOD_S * number / 10))
        assert sorted(chosen) == [0, 0, 1, 1, 2, 2]

    @pytest.mark.parametrize("policy", POLICIES)
    def test_every_request_ends_whatever_chooses(self, policy: str) -> None:
        conversations = chat(
            Draw(0),
            rate=6.0,
            duration_s=3.0,
            turns=(2, 3),
            system=(20, 60),
            message=(5, 40),
            output=(5, 20),
            think_s=0.3,
        )
        nodes = [make_node(SHAPE, 2, 200, POLICIES[policy](2), name) for name in "abc"]
        recorder = Simulation(
            Trace("chat", tuple(conversations)), nodes, Fleet(nodes, POLICIES[policy](6))
        ).run()
        assert (recorder.outcome == Outcome.DONE).all()


def test_policies_choose_by_what_they_are_named_after() -> None:
    offers = [
        Offer("worker-1", Load(backlog=0, rows=1), uncached=900),
        Offer("worker-0", Load(backlog=500, rows=9), uncached=100),
        Offer("worker-2", Load(backlog=0, rows=2), uncached=500),
    ]

    def chosen(policy: str, order: int = 0) -> str:
        route = POLICIES[policy](len(offers))
        return min(offers, key=lambda offer: route(order, offer)).name

    assert [chosen("round_robin", order) for order in range(4)] == [f"worker-{n}" for n in (0, 1, 2, 0)]
    assert chosen("least_loaded") == "worker-1"
    assert chosen("longest_prefix") == "worker-0"
    assert chosen("cost") == "worker-2"
