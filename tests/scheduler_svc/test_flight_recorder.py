"""The flight recorder: what it keeps gives the same commands again, and it is bounded."""

import gc
import pickle
import stat
from pathlib import Path

import pytest

from benchmarks.instant_rows import InstantRows
from quire.errors import InvalidRequest
from quire.packing import pack_int32
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.flight_recorder import FORMAT, RecordedScheduler, replay


def described() -> worker_pb2.WorkerDescription:
    return worker_pb2.WorkerDescription(
        worker_id="w",
        worker_epoch=1,
        block_size=4,
        num_blocks=60,
        max_rows=8,
        max_step_tokens=64,
        max_decode_steps=4,
        model=types_pb2.ModelDescription(name="m", vocab_size=100, max_model_len=80),
    )


def run_traffic(scheduler: RecordedScheduler, num_requests: int) -> int:
    """Requests that come one after the other, share prefixes, are preempted and cancelled; returns the commands."""
    rows = InstantRows(described())
    if "w" not in scheduler.replicas:
        scheduler.attach("w", rows.description, 1, 0.0)
    now, sent, results = 0.0, 0, []
    for number in range(num_requests):
        now += 0.003
        request = scheduler_pb2.TokenRequest(
            request_id=str(number),
            tenant=f"t{number % 3}",
            prompt_token_ids=pack_int32([number % 5] * 8 + [number % 97] * (number % 30 + 1)),
            sampling=types_pb2.SamplingParams(temperature=0.0, max_tokens=number % 25 + 1),
            n=1 + number % 2,
            priority=number % 4,
        )
        scheduler.add(1, number, request, number, now)
        if number % 7 == 3:
            scheduler.cancel(1, number - 1, now)
        while (command := scheduler.schedule("w", now)) is not None:
            sent += 1
            results.append(rows.execute(command))
        if results:
            scheduler.apply("w", results.pop(0), now)
        scheduler.take_updates()
        scheduler.take_endings()
    return sent


def test_a_replay_gives_every_command_again(tmp_path: Path) -> None:
    scheduler = RecordedScheduler(Limits(), max_bytes=1 << 24)
    sent = run_traffic(scheduler, 200)
    scheduler.dump(tmp_path / "record")
    found = replay(tmp_path / "record")
    assert (found.num_commands, found.first_difference) == (sent, "")
    assert stat.S_IMODE((tmp_path / "record").stat().st_mode) == 0o600


def test_what_is_kept_is_nothing_to_the_garbage_collector() -> None:
    """Walking as many objects as a full recorder holds would stand between two steps."""
    scheduler = RecordedScheduler(Limits(), max_bytes=1 << 24)
    gc.collect()
    before = len(gc.get_objects())
    scheduler.attach("w", described(), 1, 0.0)
    calls = 2000
    for number in range(calls):
        with pytest.raises(InvalidRequest):
            scheduler.add(
                1, number, scheduler_pb2.TokenRequest(request_id=str(number)), number, 0.001 * number
            )
    gc.collect()
    assert len(gc.get_objects()) - before < calls / 2


def test_a_refused_request_is_refused_again(tmp_path: Path) -> None:
    scheduler = RecordedScheduler(Limits(), max_bytes=1 << 24)
    run_traffic(scheduler, 3)
    too_long = scheduler_pb2.TokenRequest(prompt_token_ids=pack_int32([1] * 500))
    with pytest.raises(InvalidRequest):
        scheduler.add(1, 999, too_long, 0, 1.0)
    scheduler.dump(tmp_path / "record")
    assert replay(tmp_path / "record").first_difference == ""


def test_old_calls_go_when_there_is_no_room_and_the_rest_still_replays(tmp_path: Path) -> None:
    scheduler = RecordedScheduler(Limits(), max_bytes=40_000)
    sent = run_traffic(scheduler, 400)
    num_calls = scheduler.dump(tmp_path / "record")
    found = replay(tmp_path / "record")
    assert found.first_difference == ""
    assert 0 < found.num_commands < sent
    assert num_calls * 300 < 40_000 * 1.2


def test_a_command_that_differs_is_named(tmp_path: Path) -> None:
    scheduler = RecordedScheduler(Limits(), max_bytes=1 << 24)
    run_traffic(scheduler, 20)
    scheduler.dump(tmp_path / "record")
    with (tmp_path / "record").open("rb") as file:
        content = pickle.load(file)  # noqa: S301
    changed = next(call for call in content["calls"][30:] if call.method == "schedule" and call.outcome)
    changed.outcome.decode_steps += 1
    (tmp_path / "record").write_bytes(pickle.dumps(content))
    assert "schedule" in replay(tmp_path / "record").first_difference


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1]), pickle.dumps({"format": 99})])
def test_what_is_no_record_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="record"):
        replay(tmp_path / "file")


def test_a_record_of_an_older_core_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "record").write_bytes(pickle.dumps({"format": FORMAT - 1, "state": b"", "calls": []}))
    with pytest.raises(ValueError, match=f"has format {FORMAT - 1}; this program reads {FORMAT}"):
        replay(tmp_path / "record")
