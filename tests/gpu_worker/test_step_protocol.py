"""The step protocol: what a command does, and that a bad one costs its stream and nothing else."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_worker.model_runner import ModelRunner
from quire.errors import InvalidRequest
from quire.packing import pack_int32, pack_uint32, unpack_int32, unpack_uint8, unpack_uint32
from quire.v1 import types_pb2, worker_pb2
from tests.support.checkpoints import checkpoint
from tests.support.transformers_reference import greedy_tokens
from tests.support.worker_driver import DrivenRow, WorkerDriver, execute, greedy, make_runner

PROMPT = [5, 6, 7, 8]
_RUNNERS: list[ModelRunner] = []


@pytest.fixture
def runner() -> ModelRunner:
    """One for all of these tests, cleared before each."""
    torch.set_num_threads(1)
    if not _RUNNERS:
        _RUNNERS.append(make_runner(checkpoint("LlamaForCausalLM"), max_rows=4, kv_cache_memory="8MiB"))
    _RUNNERS[0].clear()
    return _RUNNERS[0]


def add(
    row: int, *, epoch: int = 1, prompt: list[int] = PROMPT, total: int = 12, first_block: int = 0, **fields
):
    blocks = pack_int32(range(first_block, first_block + 1 + total // 16))
    sampling = greedy(**fields)
    return worker_pb2.RowAdd(
        row=row,
        epoch=epoch,
        token_ids=pack_int32(prompt),
        num_prompt_tokens=len(prompt),
        block_ids=blocks,
        max_total_tokens=total,
        sampling=sampling,
    )


def command(step: int, **fields) -> worker_pb2.StepCommand:
    packed = {
        name: pack_uint32(value) if name.endswith(("rows", "tokens")) and name != "add_rows" else value
        for name, value in fields.items()
    }
    return worker_pb2.StepCommand(step_id=step, **packed)


def tokens_of(result: worker_pb2.StepResult) -> list[int]:
    return unpack_int32(result.token_ids).tolist()


def test_the_next_token_is_read_from_the_row_and_not_from_a_message(runner: ModelRunner) -> None:
    expected = greedy_tokens(checkpoint("LlamaForCausalLM"), PROMPT, 8)
    first = execute(
        runner, command(1, add_rows=[add(2)], prefill_rows=[2], prefill_num_tokens=[4], decode_steps=3)
    )
    then = execute(runner, command(2, decode_steps=5))
    assert tokens_of(first) + tokens_of(then) == expected
    assert unpack_uint32(first.num_tokens).tolist() == [3]
    assert unpack_uint32(then.epochs).tolist() == [1]
    assert unpack_uint8(then.finish_reasons).tolist() == [types_pb2.FINISH_REASON_LENGTH]
    assert (first.tokens_computed, then.tokens_computed) == (4 + 2, 5)


def test_commands_in_flight_are_no_ops_for_a_row_that_is_done(runner: ModelRunner) -> None:
    stop = greedy_tokens(checkpoint("LlamaForCausalLM"), PROMPT, 2)[1]
    adding = add(0, stop_token_ids=pack_int32([stop]))
    result = execute(
        runner, command(1, add_rows=[adding], prefill_rows=[0], prefill_num_tokens=[4], decode_steps=4)
    )
    assert tokens_of(result)[-1] == stop
    assert unpack_uint8(result.finish_reasons).tolist() == [types_pb2.FINISH_REASON_STOP]
    late = execute(runner, command(2, decode_steps=3))
    assert (tokens_of(late), late.tokens_computed) == ([], 0)


def test_a_row_can_be_removed_and_taken_again_by_one_command(runner: ModelRunner) -> None:
    execute(runner, command(1, add_rows=[add(0)], prefill_rows=[0], prefill_num_tokens=[4], decode_steps=1))
    other = [9, 10, 11]
    result = execute(
        runner,
        command(
            2,
            remove_rows=[0],
            add_rows=[add(0, epoch=7, prompt=other, first_block=3)],
            prefill_rows=[0],
            prefill_num_tokens=[3],
            decode_steps=1,
        ),
    )
    assert unpack_uint32(result.epochs).tolist() == [7]
    assert tokens_of(result) == greedy_tokens(checkpoint("LlamaForCausalLM"), other, 1)


def test_a_row_whose_numbers_are_not_numbers_fails_alone(runner: ModelRunner) -> None:
    both = [add(0), add(1, first_block=1)]
    execute(runner, command(1, add_rows=both, prefill_rows=[0, 1], prefill_num_tokens=[4, 4], decode_steps=1))
    runner._cache.keys[1][1] = float("nan")  # row 1's block
    result = execute(runner, command(2, decode_steps=1))
    runner._cache.keys[1][1] = 0.0
    assert [(failure.row, failure.error.code) for failure in result.errors] == [
        (1, types_pb2.ERROR_CODE_INTERNAL)
    ]
    assert unpack_uint32(result.rows).tolist() == [0]
    assert tokens_of(result) == greedy_tokens(checkpoint("LlamaForCausalLM"), PROMPT, 2)[1:]
    assert unpack_uint32(execute(runner, command(3, decode_steps=1)).rows).tolist() == [0]


@pytest.mark.parametrize(
    "bad",
    [
        {"remove_rows": [3]},
        {"remove_rows": [99]},
        {"decode_steps": 4_000_000_000},
        {"prefill_rows": [0], "prefill_num_tokens": [1]},
        {"prefill_rows": [0], "prefill_num_tokens": []},
        {"add_rows": [add(99)]},
        {"add_rows": [add(1), add(1)]},
        {"add_rows": [add(1, prompt=[])]},
        {"add_rows": [add(1, total=4)]},
        {"add_rows": [add(1, total=10**6)]},
        {"add_rows": [add(1, first_block=10**6)]},
        {"add_rows": [add(1, first_block=-5)]},
        {"append_rows": [1], "append_num_blocks": pack_uint32([1]), "append_block_ids": pack_int32([3])},
        {"append_rows": [0], "append_num_blocks": pack_uint32([2]), "append_block_ids": pack_int32([3])},
        {"append_block_ids": b"abc"},
    ],
)
def test_a_command_that_breaks_the_protocol_is_refused_and_the_next_stream_works(
    runner: ModelRunner, bad: dict[str, object]
) -> None:
    execute(runner, command(1, add_rows=[add(0)], prefill_rows=[0], prefill_num_tokens=[4], decode_steps=1))
    with pytest.raises(InvalidRequest):
        execute(runner, command(2, **bad))
    runner.clear()
    row = DrivenRow(PROMPT, 5, greedy())
    WorkerDriver(runner).run([row])
    assert row.tokens == greedy_tokens(checkpoint("LlamaForCausalLM"), PROMPT, 5)


def test_a_step_past_the_blocks_of_a_row_is_refused(runner: ModelRunner) -> None:
    adding = add(0, total=60)
    adding.block_ids = pack_int32([0])
    execute(runner, command(1, add_rows=[adding], prefill_rows=[0], prefill_num_tokens=[4], decode_steps=8))
    execute(runner, command(2, decode_steps=5))
    with pytest.raises(InvalidRequest, match="no block"):
        execute(runner, command(3, decode_steps=1))


arrays = st.binary(max_size=12) | st.lists(st.integers(0, 5), max_size=3).map(pack_uint32)
row_adds = st.builds(
    worker_pb2.RowAdd,
    row=st.integers(0, 5),
    epoch=st.integers(0, 2**32 - 1),
    token_ids=arrays,
    num_prompt_tokens=st.integers(0, 5),
    num_computed_tokens=st.integers(0, 3),
    block_ids=arrays,
    max_total_tokens=st.integers(0, 40) | st.integers(0, 2**32 - 1),
    sampling=st.builds(
        types_pb2.SamplingParams, top_k=st.integers(-(2**31), 2**31 - 1), stop_token_ids=arrays
    ),
)
commands = st.builds(
    worker_pb2.StepCommand,
    remove_rows=arrays,
    add_rows=st.lists(row_adds, max_size=2),
    append_rows=arrays,
    append_num_blocks=arrays,
    append_block_ids=arrays,
    prefill_rows=arrays,
    prefill_num_tokens=arrays,
    decode_steps=st.integers(0, 3) | st.integers(0, 2**32 - 1),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(commands, max_size=4))
def test_no_sequence_of_commands_does_worse_than_be_refused(
    runner: ModelRunner, several: list[worker_pb2.StepCommand]
) -> None:
    for one in several:
        try:
            execute(runner, one)
        except InvalidRequest:
            runner.clear()
    runner.clear()
    assert (runner.rows.num_used, runner.rows.num_blocks_used) == (0, 0)
