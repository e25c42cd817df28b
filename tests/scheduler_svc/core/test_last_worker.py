"""The last worker leaves or is lost: what runs, what waits, and for how long."""

import pytest

from quire.errors import NotReady
from quire.packing import pack_int32
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.scheduler import Scheduler
from tests.scheduler_svc.core.fake_worker import description

CLIENT = 1


def attach(scheduler: Scheduler, name: str, now: float, *, num_blocks: int = 24) -> None:
    described = description(int(1 + now), num_blocks=num_blocks, max_rows=6, worker_id=name)
    scheduler.attach(name, described, 1, now)


def attached(*names: str) -> Scheduler:
    scheduler = Scheduler(Limits(worker_return_s=10.0))
    for name in names:
        attach(scheduler, name, 0.0)
    return scheduler


def ask(scheduler: Scheduler, handle: int, now: float = 0.0, *, length: int = 3, n: int = 1) -> None:
    sampling = types_pb2.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    prompt = pack_int32([handle % 5] * length)
    request = scheduler_pb2.TokenRequest(prompt_token_ids=prompt, sampling=sampling, n=n)
    scheduler.add(CLIENT, handle, request, 0, now)


def rows_added(command: worker_pb2.StepCommand | None) -> int:
    return 0 if command is None else len(command.add_rows)


def errors(scheduler: Scheduler) -> dict[tuple[int, int], types_pb2.Error]:
    """By handle and sequence."""
    batches = scheduler.take_updates().values()
    return {(end.handle, end.sequence): end.error for batch in batches for end in batch.ends}


def test_a_worker_that_leaves_as_the_last_keeps_its_sequences_and_gets_no_more() -> None:
    scheduler = attached("w")
    ask(scheduler, 1)
    assert rows_added(scheduler.schedule("w", 0.0)) == 1
    ask(scheduler, 2)
    scheduler.drain("w", 0.1)
    (replica,) = scheduler.replicas.values()
    assert (replica.num_running(), len(scheduler.queue), scheduler.serves) == (1, 1, False)
    assert rows_added(scheduler.schedule("w", 0.1)) == 0
    assert scheduler.next_deadline() == float("inf"), "it has not gone"
    scheduler.check_integrity()


def test_its_sequences_move_when_another_worker_comes() -> None:
    scheduler = attached("w")
    ask(scheduler, 1)
    scheduler.schedule("w", 0.0)
    scheduler.drain("w", 0.1)
    attach(scheduler, "v", 0.2)
    assert scheduler.replicas["w"].num_running() == 0
    command = scheduler.schedule("w", 0.2)
    assert command is not None
    assert len(command.remove_rows) == 4


def test_only_what_fits_elsewhere_moves() -> None:
    scheduler = attached("large")
    ask(scheduler, 1, length=4)
    ask(scheduler, 2, length=40)
    assert rows_added(scheduler.schedule("large", 0.0)) == 2
    attach(scheduler, "small", 0.1, num_blocks=4)
    scheduler.drain("large", 0.2)
    assert [len(s.token_ids) for s in scheduler.replicas["large"].running()] == [40]


def test_a_worker_that_stays_after_all_gets_sequences_again() -> None:
    scheduler = attached("w")
    scheduler.drain("w", 0.0)
    ask(scheduler, 1, 0.1)
    assert rows_added(scheduler.schedule("w", 0.1)) == 0
    scheduler.keep("w")
    assert rows_added(scheduler.schedule("w", 0.2)) == 1


def test_what_waits_when_the_last_worker_is_lost_is_held_for_another() -> None:
    scheduler = attached("v", "w")
    ask(scheduler, 1, n=2)
    for name in ("v", "w"):
        scheduler.schedule(name, 0.0)
    scheduler.detach("v", 1.0)
    assert scheduler.next_deadline() == 11.0, "until then what only it holds is held for it"
    scheduler.detach("w", 3.0)
    ask(scheduler, 2, 4.0)
    scheduler.expire(11.0)
    assert scheduler.next_deadline() == 13.0
    scheduler.expire(12.9)
    assert len(scheduler.queue) == 3
    attach(scheduler, "w", 12.95)
    assert scheduler.next_deadline() == float("inf")
    assert rows_added(scheduler.schedule("w", 20.0)) == 3


def test_what_waits_for_too_long_ends_with_an_error_to_try_again_and_what_comes_is_refused() -> None:
    scheduler = attached("w")
    ask(scheduler, 1, n=2)
    scheduler.schedule("w", 0.0)
    ask(scheduler, 2)
    scheduler.detach("w", 3.0)
    scheduler.expire(13.0)
    found = errors(scheduler)
    assert set(found) == {(1, 0), (1, 1), (2, 0)}
    assert {error.code for error in found.values()} == {types_pb2.ERROR_CODE_UNAVAILABLE}
    assert all(error.retry_after_s > 0 for error in found.values())
    assert scheduler.num_requests == 0
    assert len(scheduler.take_endings()) == 3
    assert scheduler.next_deadline() == float("inf"), "nothing waits"
    with pytest.raises(NotReady):
        ask(scheduler, 3, 14.0)
    attach(scheduler, "w", 15.0)
    ask(scheduler, 3, 15.0)
    assert rows_added(scheduler.schedule("w", 15.0)) == 1
    scheduler.check_integrity()
