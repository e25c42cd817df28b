"""Whatever happens in whatever order: tokens exact, ends once, nothing leaked, the protocol kept, the ledger right.

Each rule is one thing that can happen to schedulers, workers, clients or Redis; after each everything is checked.
"""

import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.scheduler_svc.core.fake_index import RedisState
from tests.scheduler_svc.core.world import World

tokens = st.integers(0, 6)
shared_prompts = st.integers(1, 40).map(lambda length: [1, 2, 4, 5] * (length // 4) + [6] * (length % 4 or 1))
# Most prompts share prefixes.
prompts = st.one_of(st.lists(tokens, min_size=1, max_size=30), shared_prompts, shared_prompts, shared_prompts)


@dataclass(frozen=True)
class Arrival:
    """A request to come."""

    prompt: list[int]
    n: int
    max_tokens: int
    stop_token_ids: list[int]
    priority: int
    tenant: str
    public_prefix_tokens: int
    timeout_s: float | None
    resumed: int


arrivals = st.builds(
    Arrival,
    prompt=prompts,
    n=st.sampled_from([1, 1, 1, 3]),
    max_tokens=st.integers(1, 25),
    stop_token_ids=st.lists(st.integers(0, 49), max_size=2, unique=True),
    priority=st.integers(-1, 1),
    # Mostly one, since tenants share no prefixes but public ones.
    tenant=st.sampled_from(["a", "a", "a", "a", "b", "floor", "ceiling", "heavy"]),
    public_prefix_tokens=st.sampled_from([0, 0, 10]),
    timeout_s=st.sampled_from([None, None, 0.5, 5.0]),
    resumed=st.sampled_from([0, 0, 0, 4]),
)
Choice = TypeVar("Choice")
choices = st.integers(0, 10**6)
# As the shell does after every event; it takes several together when they come at once.
feeds = st.sampled_from([True, True, True, False])


class Events(RuleBasedStateMachine):
    """Preemptions come by small pools, redirects by several schedulers, deadlines by requests that have one."""

    world: World
    latest: ClassVar[World]

    @initialize(
        num_blocks=st.sampled_from([18, 24, 60]),
        max_rows=st.integers(1, 6),
        num_workers=st.integers(1, 2),
        num_schedulers=st.integers(1, 2),
        pipeline_depth=st.integers(1, 3),
        max_decode_steps=st.sampled_from([1, 4]),
    )
    def begin(self, **sizes: int) -> None:
        self.world = Events.latest = World(**sizes)
        self.next_key = 1

    # -- clients

    @rule(arriving=st.lists(arrivals, min_size=1, max_size=4), choice=choices, feed=feeds)
    def arrive(self, arriving: list[Arrival], choice: int, feed: bool) -> None:
        self._ask(arriving, self._one_of(self.world.shells, choice))
        self._feed(feed)

    @precondition(lambda self: self._living())
    @rule(choice=choices, whole_client=st.sampled_from([False, False, False, True]), feed=feeds)
    def cancel(self, choice: int, whole_client: bool, feed: bool) -> None:
        if whole_client:
            self.world.clients.leave(1 + choice % 2, self.world.now)
        else:
            self.world.clients.cancel(self._one_of(self._living(), choice), self.world.now)
        self._feed(feed)

    @precondition(lambda self: self._living())
    @rule(choice=choices, sequence=st.integers(0, 2), feed=feeds)
    def finish(self, choice: int, sequence: int, feed: bool) -> None:
        self.world.receive()
        key = self._one_of(self._living(), choice)
        self.world.clients.finish(key, sequence % self.world.asked[key].n, self.world.now)
        self._feed(feed)

    @precondition(lambda self: any(not self.world.asked[key].home for key in self._living()))
    @rule(feed=feeds)
    def rehouse(self, feed: bool) -> None:
        self.world.rehouse()
        self._feed(feed)

    # -- steps and time

    @rule(choice=choices, times=st.integers(1, 6), is_published=feeds)
    def step(self, choice: int, times: int, is_published: bool) -> None:
        for _ in range(times):
            self.world.now += 0.05
            self.world.answer(self._one_of(self.world.workers, choice))
            self.world.receive()
            self._feed(True)
        if is_published:
            self.world.index.flush()

    @rule(choice=choices, times=st.integers(1, 2))
    def work_unheard(self, choice: int, times: int) -> None:
        """A worker gets on with its commands, but its results are still on their way."""
        self.world.work(self._one_of(self.world.workers, choice), times)

    @rule()
    def pass_time(self) -> None:
        self.world.now += 1.0
        for shell in self.world.shells.values():
            shell.scheduler.expire(self.world.now)
        self._feed(True)

    # -- workers

    @precondition(lambda self: self._connected())
    @rule(choice=choices, restart=st.booleans(), is_noticed=feeds)
    def lose(self, choice: int, restart: bool, is_noticed: bool) -> None:
        name = self._one_of(self._connected(), choice)
        self.world.disconnect(name, restart=restart, is_noticed=is_noticed)
        self._feed(True)

    @precondition(lambda self: len(self._connected()) < len(self.world.workers))
    @rule(answers=feeds, feed=feeds)
    def come_back(self, answers: bool, feed: bool) -> None:
        name = next(name for name in self.world.workers if not self.world.is_connected(name))
        self.world.connect(name, answers=answers)
        self._feed(feed)

    # -- the fleet

    @rule(
        event=st.sampled_from(["drain", "hear", "hand over", "take over", "take over", "kill", "redis"]),
        worker=choices,
        scheduler=choices,
        redis=st.sampled_from(RedisState),
    )
    def upset(self, event: str, worker: int, scheduler: int, redis: RedisState) -> None:
        """What happens now and then; one rule, so that it does not happen all the time."""
        world = self.world
        name, to = self._one_of(world.workers, worker), self._one_of(world.shells, scheduler)
        if event == "drain":
            # It says so with its next result.
            world.workers[name].is_draining = True
        elif event == "hear":
            world.hear()
        elif event == "hand over":
            world.hand_over(name, to)
        elif event == "take over":
            world.take_over(name, to)
        elif event == "kill":
            # What came last has not been read by its clients.
            world.answer(name)
            world.kill_scheduler(to)
        else:
            world.index.state = redis
            if redis is RedisState.AWAY and worker % 2:
                world.index.lose_all()
        self._feed(True)

    @precondition(lambda self: len(self.world.shells) > 1)
    @rule(arriving=st.lists(arrivals, min_size=1, max_size=4), worker=choices, times=st.integers(1, 6))
    def borrow(self, arriving: list[Arrival], worker: int, times: int) -> None:
        """A lease expires, another scheduler uses the worker, and it is back before its holder has noticed."""
        world = self.world
        name = self._one_of(world.workers, worker)
        holder = world.lessees[name]
        borrower = next(other for other in world.shells if other != holder)
        world.take_over(name, borrower)
        self._ask(arriving, borrower)
        for _ in range(times):
            world.feed(name)
            world.answer(name)
        world.receive()
        world.take_over(name, holder)
        self._feed(True)

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.world.receive()
        self.world.check()

    def teardown(self) -> None:
        # After a failure there is nothing to settle, and what that raised would hide the cause.
        if hasattr(self, "world") and sys.exc_info()[0] is None:
            self.world.settle()

    def _ask(self, arriving: list[Arrival], home: str) -> None:
        for arrival in arriving:
            self.next_key += 1
            fields = {key: value for key, value in vars(arrival).items() if value is not None}
            self.world.ask(self.next_key, home=home, **fields)

    def _connected(self) -> list[str]:
        return [name for name in self.world.workers if self.world.is_connected(name)]

    def _living(self) -> list[int]:
        return [key for key, asked in self.world.asked.items() if not asked.is_over]

    def _feed(self, really: bool) -> None:
        if really:
            for name in self.world.workers:
                self.world.feed(name)

    @staticmethod
    def _one_of(some: Collection[Choice], choice: int) -> Choice:
        return list(some)[choice % len(some)]


def explore(examples: int, steps: int, *, derandomize: bool = False, shrink: bool = True) -> None:
    """Raise the first failure found, made as small as can be unless told not to."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=derandomize,
        phases=phases,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(Events, settings=profile)
    except BaseException as error:
        # The last example that ran is the smallest that fails.
        directory = Path(tempfile.mkdtemp(prefix="quire-flight-"))
        for name, shell in Events.latest.shells.items():
            shell.scheduler.dump(directory / name)
            error.add_note(f"a flight record, for `python -m benchmarks.replay`: {directory / name}")
        raise


@pytest.mark.timeout(1200)
def test_any_order_of_events() -> None:
    explore(100, 60)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_long_histories() -> None:
    explore(1000, 200)
