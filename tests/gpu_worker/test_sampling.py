"""Sampling: a seed fixes the tokens whatever else runs; filters and penalties are those of transformers."""

import math
import random
from collections import Counter

import pytest
import torch

from kernels.logits import apply_penalties
from kernels.sampling import sample
from quire.packing import pack_float32, pack_int32
from quire.v1 import types_pb2
from tests.support.checkpoints import checkpoint
from tests.support.worker_driver import DrivenRow, WorkerDriver, greedy, make_runner

VOCAB = 64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def seeded(seed: int) -> types_pb2.SamplingParams:
    return types_pb2.SamplingParams(
        temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=seed
    )


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(4)
    return [[rng.randrange(5, 760) for _ in range(rng.randint(1, 90))] for _ in range(count)]


def test_a_seed_gives_the_same_tokens_alone_and_among_31_others_however_chunked() -> None:
    runner = make_runner(checkpoint("LlamaForCausalLM"), max_rows=32, max_step_tokens=8192)
    driver = WorkerDriver(runner, seed=1)
    alone = DrivenRow(prompts(1)[0], 40, seeded(7))
    driver.run([alone])
    for max_chunk, max_decode_steps in ((10_000, 1), (7, 1), (30, 5)):
        others = [
            DrivenRow(prompt, 40, seeded(number) if number % 2 else greedy())
            for number, prompt in enumerate(prompts(32)[1:])
        ]
        among = DrivenRow(alone.prompt, 40, seeded(7))
        driver.run(
            [*others[:15], among, *others[15:]], max_chunk=max_chunk, max_decode_steps=max_decode_steps
        )
        assert among.tokens == alone.tokens
    other_seed = DrivenRow(alone.prompt, 40, seeded(8))
    driver.run([other_seed])
    assert other_seed.tokens != alone.tokens


def test_a_row_added_again_with_its_tokens_so_far_goes_on_as_if_never_removed() -> None:
    runner = make_runner(checkpoint("LlamaForCausalLM"), max_rows=4)
    whole = DrivenRow(prompts(1)[0], 30, seeded(3))
    WorkerDriver(runner, seed=1).run([whole])
    again = DrivenRow(whole.prompt, 30, seeded(3), tokens=whole.tokens[:11])
    WorkerDriver(runner, seed=2).run([again])
    assert again.tokens == whole.tokens


def one_row(**values: float) -> dict[str, torch.Tensor]:
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return {
        name: torch.tensor([value], dtype=torch.int64 if name == "top_k" else torch.float32)
        for name, value in (defaults | values).items()
    }


def draws(logits: torch.Tensor, count: int, **values: float) -> Counter[int]:
    """Tokens drawn for `count` seeds from one row of logits [vocab]."""
    row = {name: value.expand(count) for name, value in one_row(**values).items()}
    seeds, positions = torch.arange(count) * 7919, torch.full((count,), 5)
    return Counter(sample(logits.expand(count, -1), seeds=seeds, positions=positions, **row).tolist())


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 0.5, "top_k": 9, "top_p": 0.8},
        {"temperature": 1.7, "top_k": 20, "min_p": 0.1},
    ],
)
def test_filters_keep_exactly_what_transformers_keeps_and_draw_by_its_probabilities(
    values: dict[str, float],
) -> None:
    from transformers import generation

    torch.manual_seed(3)
    logits = torch.randn(VOCAB) * 2
    scores = logits[None] / values.get("temperature", 1.0)
    if "top_k" in values:
        scores = generation.TopKLogitsWarper(int(values["top_k"]))(None, scores)
    if "top_p" in values:
        scores = generation.TopPLogitsWarper(values["top_p"])(None, scores)
    if "min_p" in values:
        scores = generation.MinPLogitsWarper(values["min_p"])(None, scores)
    probabilities = scores.softmax(-1)[0]
    count = 20_000
    found = draws(logits, count, **values)
    assert set(found) <= set(torch.nonzero(probabilities > 0)[:, 0].tolist())
    # The seeds are fixed, so this is a calculation, not a chance: chi-square far below any suspicion.
    expected = [(token, count * float(p)) for token, p in enumerate(probabilities) if float(p) * count >= 5]
    chi_square = sum((found[token] - wanted) ** 2 / wanted for token, wanted in expected)
    assert chi_square < len(expected) + 4 * math.sqrt(2 * len(expected))


def test_temperature_zero_is_greedy_beside_rows_that_draw() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, VOCAB)
    row = {name: value.expand(2).clone() for name, value in one_row().items()}
    row["temperature"][0] = 0.0
    tokens = sample(logits, seeds=torch.tensor([1, 2]), positions=torch.tensor([3, 3]), **row)
    assert tokens[0] == logits[0].argmax()


def test_penalties_are_those_of_transformers_and_openai() -> None:
    from transformers.generation import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(2)
    logits = torch.randn(1, VOCAB)
    prompt, output = [1, 2, 3], [3, 4, 4]
    in_prompt = torch.zeros(1, VOCAB, dtype=torch.bool)
    in_prompt[0, prompt] = True
    counts = torch.bincount(torch.tensor(output), minlength=VOCAB)[None]
    found = apply_penalties(
        logits,
        torch.tensor([0]),
        counts,
        in_prompt,
        torch.tensor([1.3]),
        torch.tensor([0.5]),
        torch.tensor([0.25]),
    )
    wanted = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([prompt + output]), logits.clone())
    wanted[0, 3] -= 0.5 * 1 + 0.25
    wanted[0, 4] -= 0.5 * 2 + 0.25
    assert torch.allclose(found, wanted)


def test_logit_bias_forces_and_forbids_tokens() -> None:
    runner = make_runner(checkpoint("LlamaForCausalLM"), max_rows=4)
    # No half of it would do: what a token is given twice is added up.
    forced = greedy(
        logit_bias_token_ids=pack_int32([33, 34, 33]), logit_bias_values=pack_float32([900, 1000, 900])
    )
    forbidden = greedy(
        logit_bias_token_ids=pack_int32([33]), logit_bias_values=pack_float32([-1000]),
        frequency_penalty=0.1,
    )  # fmt: skip
    rows = [DrivenRow([5, 6, 7], 4, asked) for asked in (greedy(), forced, forbidden)]
    WorkerDriver(runner).run(rows)
    assert rows[1].tokens == [33] * 4
    assert 33 not in rows[2].tokens


def test_stop_tokens_wait_for_min_tokens_and_then_end_the_row() -> None:
    runner = make_runner(checkpoint("LlamaForCausalLM"), max_rows=4)
    free = DrivenRow([5, 6, 7], 12, greedy())
    driver = WorkerDriver(runner)
    driver.run([free])
    stop = free.tokens[2]
    at_once = DrivenRow([5, 6, 7], 12, greedy(stop_token_ids=pack_int32([stop])))
    driver.run([at_once])
    first = free.tokens.index(stop)
    assert at_once.tokens == free.tokens[: first + 1]
    assert at_once.finish_reason == types_pb2.FINISH_REASON_STOP
    late = DrivenRow([5, 6, 7], 12, greedy(stop_token_ids=pack_int32([stop]), min_tokens=8))
    driver.run([late])
    assert stop not in late.tokens[:8]
    assert len(late.tokens) > 8


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logprobs": 1000}, "logprobs"),
        ({"logit_bias_token_ids": pack_int32([5])}, "logit_bias"),
        ({"logit_bias_token_ids": pack_int32([9999]), "logit_bias_values": pack_float32([1])}, "logit_bias"),
        ({"stop_token_ids": pack_int32([9999])}, "stop_token_ids"),
        ({"grammar": types_pb2.Grammar(regex="a")}, "response_format"),
    ],
)
def test_a_row_that_cannot_be_sampled_fails_alone(fields: dict[str, object], param: str) -> None:
    runner = make_runner(checkpoint("LlamaForCausalLM"), max_rows=4)
    good, bad = (
        DrivenRow([5, 6, 7], 4, greedy()),
        DrivenRow([5, 6], 4, types_pb2.SamplingParams(seed=1, **fields)),
    )
    WorkerDriver(runner).run([good, bad])
    assert bad.error is not None
    assert (bad.error.code, bad.error.param) == (types_pb2.ERROR_CODE_INVALID_ARGUMENT, param)
    assert (len(good.tokens), good.error, bad.tokens) == (4, None, [])
