"""A batch is drawn in the cheapest way that suits all of its rows, and the way changes no row's tokens."""

import numpy as np
import pytest
import torch

from gpu_worker.device_rows import RowChanges
from gpu_worker.row_sampling import DrawKind, RowSampling
from quire.packing import pack_float32, pack_int32
from quire.v1 import types_pb2, worker_pb2
from tests.support.checkpoints import checkpoint
from tests.support.worker_driver import DrivenRow, WorkerDriver, greedy, make_runner

GREEDY = types_pb2.SamplingParams(temperature=0, top_p=0.5)
WARM = types_pb2.SamplingParams(temperature=0.7, seed=3)
FILTERED = types_pb2.SamplingParams(temperature=0.7, min_p=0.1, seed=3)
PENALISED = types_pb2.SamplingParams(temperature=0, frequency_penalty=0.5)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ([GREEDY], DrawKind.GREEDY),
        ([GREEDY, WARM], DrawKind.TEMPERATURE),
        ([types_pb2.SamplingParams(temperature=1, top_k=-1, top_p=1)], DrawKind.TEMPERATURE),
        ([types_pb2.SamplingParams(temperature=1, top_p=0.9)], DrawKind.FILTERED),
        ([WARM, FILTERED, GREEDY], DrawKind.FILTERED),
        ([PENALISED], DrawKind.EDITED),
        ([FILTERED, PENALISED], DrawKind.EDITED),
        ([types_pb2.SamplingParams(temperature=0, logprobs=0)], DrawKind.EDITED),
    ],
)
def test_the_most_demanding_row_decides(asked: list[types_pb2.SamplingParams], kind: DrawKind) -> None:
    sampling = RowSampling(8, 100, 5)
    for row, params in enumerate(asked):
        added = worker_pb2.RowAdd(row=row, token_ids=pack_int32([1]), num_prompt_tokens=1, sampling=params)
        sampling.check(added)
        sampling.add(added, RowChanges(4))
    rows = np.arange(len(asked))
    assert sampling.plan(rows, np.ones(len(asked), np.int64)).kind == kind


def planned(asked: list[types_pb2.SamplingParams], num_tokens: list[int]) -> dict[str, list[float]]:
    """The edits of a batch of rows 1, 2, ... with prompts of one token."""
    sampling = RowSampling(8, 100, 5)
    for row, params in enumerate(asked, start=1):
        added = worker_pb2.RowAdd(row=row, token_ids=pack_int32([1]), num_prompt_tokens=1, sampling=params)
        sampling.add(added, RowChanges(4))
    plan = sampling.plan(np.arange(1, len(asked) + 1), np.array(num_tokens))
    return {name: array.tolist() for name, array in plan.edits.items()}


def test_biases_are_lists_in_the_order_of_the_batch_with_each_token_once() -> None:
    twice = greedy(logit_bias_token_ids=pack_int32([9, 4, 9]), logit_bias_values=pack_float32([1, -2, 0.5]))
    once = greedy(logit_bias_token_ids=pack_int32([7]), logit_bias_values=pack_float32([3]))
    assert planned([GREEDY, twice, WARM, once], [1, 1, 1, 1]) == {
        "bias_starts": [0, 0, 2, 2, 3], "bias_tokens": [4, 9, 7], "bias_values": [-2, 1.5, 3],
    }  # fmt: skip


def test_stop_tokens_are_banned_for_the_rows_that_are_below_their_minimum() -> None:
    early = greedy(stop_token_ids=pack_int32([5, 6]), min_tokens=4)
    assert planned([early, GREEDY, early, early], [4, 1, 5, 1]) == {
        "ban_starts": [0, 2, 2, 2, 4], "ban_tokens": [5, 6, 5, 6],
    }  # fmt: skip
    assert planned([early], [5]) == {}
    assert planned([greedy(min_tokens=4)], [1]) == {}


def test_a_row_that_is_taken_again_asks_for_nothing_of_its_last_sequence() -> None:
    sampling = RowSampling(2, 100, 5)
    for params in (FILTERED, PENALISED, GREEDY):
        added = worker_pb2.RowAdd(row=1, token_ids=pack_int32([1]), num_prompt_tokens=1, sampling=params)
        sampling.add(added, RowChanges(4))
    assert sampling.plan(np.array([1]), np.array([1])).kind == DrawKind.GREEDY


def test_tokens_of_a_warm_row_do_not_depend_on_how_its_batch_is_drawn() -> None:
    torch.set_num_threads(1)
    driver = WorkerDriver(make_runner(checkpoint("Qwen3ForCausalLM"), max_rows=4))
    found = []
    for other in (WARM, FILTERED, PENALISED, greedy(logprobs=2)):
        row = DrivenRow([7, 8, 9], 25, WARM)
        driver.run([row, DrivenRow([5, 6], 25, other)])
        found.append(row.tokens)
    assert all(tokens == found[0] for tokens in found)
