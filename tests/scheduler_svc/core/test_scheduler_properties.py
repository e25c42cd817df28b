"""Whatever happens in whatever order: tokens exact, ends once, nothing leaked, the protocol kept, the ledger right."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

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

from tests.scheduler_svc.core.world import World

tokens = st.integers(0, 6)
# Prompts that share prefixes, and some that do not.
prompts = st.one_of(
    st.lists(tokens, min_size=1, max_size=30),
    st.integers(1, 40).map(lambda length: [1, 2, 4, 5] * (length // 4) + [6] * (length % 4 or 1)),
)


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
    tenant=st.sampled_from(["a", "b", "floor", "ceiling", "heavy"]),
    public_prefix_tokens=st.sampled_from([0, 0, 10]),
    timeout_s=st.sampled_from([None, None, 0.5, 5.0]),
    resumed=st.sampled_from([0, 0, 0, 4]),
)
choices = st.integers(0, 10**6)
# As the shell does after every event; it takes several together when they come at once.
feeds = st.sampled_from([True, True, True, False])


class Events(RuleBasedStateMachine):
    """Arrivals, steps, cancels, stop strings, deadlines, preemptions (by small pools), lost and restarted workers."""

    world: World
    latest: ClassVar[World]

    @initialize(
        num_blocks=st.sampled_from([18, 24, 60]),
        max_rows=st.integers(1, 6),
        num_workers=st.integers(1, 2),
        pipeline_depth=st.integers(1, 3),
        max_decode_steps=st.sampled_from([1, 4]),
    )
    def begin(self, **sizes: int) -> None:
        self.world = Events.latest = World(**sizes)
        self.next_key = 1

    @rule(arriving=st.lists(arrivals, min_size=1, max_size=4), feed=feeds)
    def arrive(self, arriving: list[Arrival], feed: bool) -> None:
        for arrival in arriving:
            self.next_key += 1
            fields = {key: value for key, value in vars(arrival).items() if value is not None}
            self.world.ask(self.next_key, **fields)
        self._feed(feed)

    @rule(choice=choices, times=st.integers(1, 6))
    def step(self, choice: int, times: int) -> None:
        for _ in range(times):
            self.world.now += 0.05
            self.world.answer(self._worker(choice))
            self.world.receive()
            self._feed(True)

    @rule(choice=choices, times=st.integers(1, 2))
    def work_unheard(self, choice: int, times: int) -> None:
        """A worker gets on with its commands, but its results are still on their way."""
        self.world.work(self._worker(choice), times)

    @precondition(lambda self: self._living())
    @rule(choice=choices, whole_client=st.sampled_from([False, False, False, True]), feed=feeds)
    def cancel(self, choice: int, whole_client: bool, feed: bool) -> None:
        if whole_client:
            self.world.leave(1 + choice % 2)
        else:
            self.world.cancel(self._living()[choice % len(self._living())])
        self._feed(feed)

    @precondition(lambda self: self._living())
    @rule(choice=choices, sequence=st.integers(0, 2), feed=feeds)
    def finish(self, choice: int, sequence: int, feed: bool) -> None:
        self.world.receive()
        key = self._living()[choice % len(self._living())]
        self.world.finish(key, sequence % self.world.asked[key].n)
        self._feed(feed)

    @precondition(lambda self: any(worker.connected for worker in self.world.workers.values()))
    @rule(choice=choices, restart=st.booleans())
    def lose(self, choice: int, restart: bool) -> None:
        connected = [name for name, worker in self.world.workers.items() if worker.connected]
        self.world.disconnect(connected[choice % len(connected)], restart=restart)
        self._feed(True)

    @precondition(lambda self: not all(worker.connected for worker in self.world.workers.values()))
    @rule(feed=feeds)
    def come_back(self, feed: bool) -> None:
        self.world.connect(next(name for name, worker in self.world.workers.items() if not worker.connected))
        self._feed(feed)

    @rule()
    def pass_time(self) -> None:
        self.world.now += 1.0
        self.world.scheduler.expire(self.world.now)
        self._feed(True)

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.world.receive()
        self.world.check()

    def teardown(self) -> None:
        # After a failure there is nothing to settle, and what that raised would hide the cause.
        if hasattr(self, "world") and sys.exc_info()[0] is None:
            self.world.settle()

    def _worker(self, choice: int) -> str:
        return list(self.world.workers)[choice % len(self.world.workers)]

    def _living(self) -> list[int]:
        return [key for key, asked in self.world.asked.items() if not asked.is_over]

    def _feed(self, really: bool) -> None:
        if really:
            for name in self.world.workers:
                self.world.feed(name)


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
        path = Path(tempfile.mkdtemp(prefix="quire-flight-")) / "record"
        Events.latest.scheduler.dump(path)
        error.add_note(f"its flight record, for `python -m benchmarks.replay`: {path}")
        raise


def test_any_order_of_events() -> None:
    explore(200, 60)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_long_histories() -> None:
    explore(1000, 200)
