"""Whatever happens in whatever order: tokens exact, ends once, nothing leaked, the protocol kept, the ledger right."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.scheduler_svc.core.world import World

tokens = st.integers(0, 6)
# Prompts that share prefixes, and some that do not.
prompts = st.one_of(
    st.lists(tokens, min_size=1, max_size=30),
    st.integers(1, 40).map(lambda length: [1, 2, 4, 5] * (length // 4) + [6] * (length % 4 or 1)),
)


class Events(RuleBasedStateMachine):
    """Arrivals, steps, cancels, stop strings, deadlines, preemptions (by small pools), lost and restarted workers."""

    world: World

    @initialize(
        num_blocks=st.sampled_from([18, 24, 60]), max_rows=st.integers(1, 6), num_workers=st.integers(1, 2)
    )
    def begin(self, num_blocks: int, max_rows: int, num_workers: int) -> None:
        self.world = World(num_blocks=num_blocks, max_rows=max_rows, num_workers=num_workers)
        self.next_handle = 0

    @rule(
        prompt=prompts,
        n=st.sampled_from([1, 1, 1, 3]),
        max_tokens=st.integers(1, 25),
        stops=st.lists(st.integers(0, 49), max_size=2, unique=True),
        priority=st.integers(-1, 1),
        tenant=st.sampled_from(["a", "b"]),
        timeout_s=st.sampled_from([None, None, 0.5, 5.0]),
        resumed=st.sampled_from([0, 0, 0, 4]),
    )
    def arrive(
        self,
        prompt: list[int],
        n: int,
        max_tokens: int,
        stops: list[int],
        priority: int,
        tenant: str,
        timeout_s: float | None,
        resumed: int,
    ) -> None:
        self.next_handle += 1
        fields: dict[str, object] = {"priority": priority, "tenant": tenant}
        if timeout_s is not None:
            fields["timeout_s"] = timeout_s
        self.world.ask(
            self.next_handle,
            prompt,
            n=n,
            max_tokens=max_tokens,
            stop_token_ids=stops,
            resumed=resumed if n == 1 else 0,
            **fields,
        )

    @rule(worker=st.integers(0, 1), times=st.integers(1, 6))
    def step(self, worker: int, times: int) -> None:
        name = list(self.world.workers)[worker % len(self.world.workers)]
        for _ in range(times):
            self.world.now += 0.05
            self.world.feed(name)
            self.world.answer(name)
            self.world.receive()

    @rule(worker=st.integers(0, 1))
    def run_ahead(self, worker: int) -> None:
        """Commands go out, no result comes in."""
        self.world.feed(list(self.world.workers)[worker % len(self.world.workers)])

    @rule(choice=st.integers(0, 10**6))
    def cancel(self, choice: int) -> None:
        if living := [handle for handle, asked in self.world.asked.items() if not asked.is_over]:
            self.world.cancel(living[choice % len(living)])

    @rule(choice=st.integers(0, 10**6), sequence=st.integers(0, 2))
    def finish(self, choice: int, sequence: int) -> None:
        self.world.receive()
        if living := [handle for handle, asked in self.world.asked.items() if not asked.is_over]:
            handle = living[choice % len(living)]
            self.world.finish(handle, sequence % self.world.asked[handle].n)

    @rule(worker=st.integers(0, 1), restart=st.booleans())
    def lose(self, worker: int, restart: bool) -> None:
        name = list(self.world.workers)[worker % len(self.world.workers)]
        if self.world.workers[name].connected:
            self.world.disconnect(name, restart=restart)
        else:
            self.world.connect(name)

    @rule()
    def pass_time(self) -> None:
        self.world.now += 1.0
        self.world.scheduler.expire(self.world.now)

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.world.receive()
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


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
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Events, settings=profile)


def test_any_order_of_events() -> None:
    explore(300, 60)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_long_histories() -> None:
    explore(1000, 200)
