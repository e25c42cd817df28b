"""A command as the worker gets it: the bytes of a StepCommand, after two that were good."""

import torch
from google.protobuf.message import DecodeError

from gpu_worker.block_tags import BlockTags
from quire.errors import InvalidRequest
from quire.packing import pack_float32, pack_int32, pack_uint32, unpack_uint32
from quire.v1 import types_pb2, worker_pb2
from tests.support.checkpoints import checkpoint
from tests.support.worker_driver import execute, greedy, make_runner

torch.set_num_threads(1)
_RUNNER = make_runner(checkpoint("LlamaForCausalLM", num_hidden_layers=1), max_rows=4, kv_cache_memory="1MiB")


def _add(row: int, epoch: int, first_block: int, sampling: types_pb2.SamplingParams) -> worker_pb2.RowAdd:
    return worker_pb2.RowAdd(
        row=row,
        epoch=epoch,
        token_ids=pack_int32([5, 6, 7, 8]),
        num_prompt_tokens=4,
        block_ids=pack_int32([first_block]),
        max_total_tokens=40,
        sampling=sampling,
    )


_OPENING = worker_pb2.StepCommand(
    step_id=1,
    add_rows=[_add(0, 1, 0, greedy()), _add(1, 2, 1, greedy())],
    prefill_rows=pack_uint32([0, 1]),
    prefill_num_tokens=pack_uint32([4, 2]),
    decode_steps=1,
)


def seeds() -> list[bytes]:
    """Row 0 decodes and row 1 is in the middle of its prompt: commands that go on from there."""
    sampling = types_pb2.SamplingParams(
        temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, seed=7, repetition_penalty=1.1, frequency_penalty=0.5,
        presence_penalty=-0.5, logit_bias_token_ids=pack_int32([3]), logit_bias_values=pack_float32([1.5]),
        logprobs=2, min_tokens=1, stop_token_ids=pack_int32([5]),
    )  # fmt: skip
    commands = [
        {"decode_steps": 2},
        {"prefill_rows": pack_uint32([1]), "prefill_num_tokens": pack_uint32([2]), "decode_steps": 1},
        {"remove_rows": pack_uint32([0]), "add_rows": [_add(0, 3, 2, sampling)],
         "prefill_rows": pack_uint32([0, 1]), "prefill_num_tokens": pack_uint32([4, 1]), "decode_steps": 1},
        {"append_rows": pack_uint32([0, 1]), "append_num_blocks": pack_uint32([2, 1]),
         "append_block_ids": pack_int32([3, 4, 5]), "decode_steps": 3},
    ]  # fmt: skip
    return [worker_pb2.StepCommand(step_id=2, **fields).SerializeToString() for fields in commands]


def run(data: bytes) -> None:
    """It is executed or refused; nothing of it is left on the next stream."""
    try:
        command = worker_pb2.StepCommand.FromString(data)
    except DecodeError:
        return
    BlockTags(_RUNNER.limits.num_blocks, _RUNNER.limits.block_size).note(command)
    try:
        execute(_RUNNER, _OPENING)
        for result in (execute(_RUNNER, command), execute(_RUNNER, worker_pb2.StepCommand(decode_steps=1))):
            assert all(row < _RUNNER.limits.max_rows for row in unpack_uint32(result.rows))
            result.SerializeToString()
    except InvalidRequest as error:
        error.to_proto()
    _RUNNER.clear()
    assert (_RUNNER.rows.num_used, _RUNNER.rows.num_blocks_used) == (0, 0)
