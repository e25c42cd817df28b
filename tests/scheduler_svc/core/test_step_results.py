"""A worker that talks nonsense loses its stream; the scheduler keeps its requests and its books."""

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.packing import pack_int32, pack_uint8, pack_uint32, unpack_int32, unpack_uint32
from quire.v1 import types_pb2, worker_pb2
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.core.step_tokens import ProtocolError
from tests.scheduler_svc.core.fake_worker import VOCAB, description
from tests.scheduler_svc.core.world import World

small = st.integers(0, 6)
results = st.builds(
    worker_pb2.StepResult,
    rows=st.lists(small, max_size=4).map(pack_uint32) | st.binary(max_size=9),
    epochs=st.lists(small, max_size=4).map(pack_uint32),
    num_tokens=st.just(b"") | st.lists(small, max_size=4).map(pack_uint32) | st.binary(max_size=9),
    token_ids=st.lists(st.integers(-1, VOCAB), max_size=6).map(pack_int32) | st.binary(max_size=9),
    finish_reasons=st.binary(max_size=4),
    step_s=st.floats(),
    tokens_computed=st.integers(0, 2**32 - 1),
    errors=st.lists(
        st.builds(
            worker_pb2.RowError, row=small | st.just(2**32 - 1), epoch=small, error=st.just(types_pb2.Error())
        ),
        max_size=2,
    ),
)


def busy_world() -> World:
    """Rows that run, a row that a sequence has left, and rows never used; two commands in flight."""
    world = World()
    world.ask(1, [1, 2, 4], max_tokens=25)
    world.ask(2, [6, 6], max_tokens=25, n=2)
    world.ask(3, [5] * 5, max_tokens=1)
    for _ in range(4):
        world.feed("w0")
        world.answer("w0")
    world.receive()
    world.feed("w0")
    world.work("w0")
    assert world.asked[3].is_over
    assert not world.asked[1].is_over
    return world


@given(results, st.booleans())
@settings(max_examples=300, deadline=None)
def test_nonsense_ends_the_stream_and_nothing_else(nonsense: worker_pb2.StepResult, mixed: bool) -> None:
    world = busy_world()
    true = world.workers["w0"].results[0]
    nonsense.step_id = true.step_id
    if mixed:  # one wrong column among right ones reaches further
        column = ("rows", "num_tokens", "token_ids", "finish_reasons")[len(nonsense.token_ids) % 4]
        value = getattr(nonsense, column)
        nonsense.CopyFrom(true)
        setattr(nonsense, column, value)
    try:
        world.scheduler.apply("w0", nonsense, world.now)
    except ProtocolError:
        world.disconnect("w0", restart=True)
        world.check()
        world.receive()
        world.shells["s0"].settle()
        world.connect("w0")
        for _ in range(200):
            world.feed("w0")
            world.answer("w0")
            world.receive()
        assert all(asked.is_over for asked in world.asked.values())
    world.check()


def free_row(world: World) -> tuple[int, int]:
    """A row that was used and is free, and its last epoch."""
    table = world.scheduler.replicas["w0"].rows
    (row,) = [row for row in np.flatnonzero(table.epochs).tolist() if table.sequences[row] is None]
    return row, int(table.epochs[row])


def test_tokens_of_a_row_that_is_free_again_go_to_nobody() -> None:
    world = busy_world()
    row, epoch = free_row(world)
    result = world.workers["w0"].results[0]
    for row_id, row_epoch in ((row, epoch), (4, 0)):
        result.rows += pack_uint32([row_id])
        result.epochs += pack_uint32([row_epoch])
        result.token_ids += pack_int32([1])
        result.num_tokens += pack_uint32([1]) if result.num_tokens else b""
        result.finish_reasons += pack_uint8([0])
    world.settle()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.MergeFrom(worker_pb2.StepResult(step_s=nan)), "seconds"),
        (lambda r: r.MergeFrom(worker_pb2.StepResult(step_s=inf)), "seconds"),
        (lambda r: r.MergeFrom(worker_pb2.StepResult(step_s=-1.0)), "seconds"),
        (lambda r: _replace(r, "rows", [int(unpack_uint32(r.rows)[0])] * 3), "twice"),
        (lambda r: _replace(r, "token_ids", [VOCAB] * (len(r.token_ids) // 4)), "vocabulary"),
        (lambda r: _replace(r, "token_ids", [-1] * (len(r.token_ids) // 4)), "vocabulary"),
        (lambda r: setattr(r, "finish_reasons", b"\xff" * len(r.finish_reasons)), "ended in way"),
        (lambda r: setattr(r, "finish_reasons", b"\3" * len(r.finish_reasons)), "ended in way"),
    ],
)
def test_values_that_cannot_be_are_named(change, message: str) -> None:
    world = busy_world()
    result = world.workers["w0"].results[0]
    assert len(unpack_int32(result.rows)) == 3
    change(result)
    with pytest.raises(ProtocolError, match=message):
        world.answer("w0")


def _replace(result: worker_pb2.StepResult, column: str, values: list[int]) -> None:
    setattr(result, column, pack_int32(values))


@pytest.mark.parametrize(
    "field", ["block_size", "num_blocks", "max_rows", "max_step_tokens", "max_decode_steps"]
)
def test_a_worker_that_can_hold_nothing_is_refused(field: str) -> None:
    worker = description(1, num_blocks=8, max_rows=2)
    setattr(worker, field, 0)
    scheduler = Scheduler(World().scheduler._limits)
    with pytest.raises(ProtocolError):
        scheduler.attach("w", worker, 1, 0.0)
    assert scheduler.abilities is None


def test_a_worker_with_broken_stop_tokens_is_refused() -> None:
    worker = description(1, num_blocks=8, max_rows=2)
    worker.model.eos_token_ids = b"\1"
    with pytest.raises(ProtocolError, match="eos_token_ids"):
        World().scheduler.attach("another", worker, 1, 0.0)
