"""The judge finds a token that the model would not have chosen, and nothing else."""

import pytest
import torch

from benchmarks.gpu_proof.reference import Findings, Reference, Transcript, judge_one
from kernels.sampling import reference as sampling
from tests.support.checkpoints import checkpoint
from tests.support.transformers_reference import greedy_tokens

PROMPT = [5, 6, 7, 8]


def logits_for(tokens: list[int], vocab_size: int = 50) -> torch.Tensor:
    """Under which these tokens are the likeliest, by more than 1."""
    logits = torch.randn(len(tokens), vocab_size, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    logits[range(len(tokens)), tokens] = 4.0
    return logits


def test_likeliest_tokens_are_exact() -> None:
    found = Findings()
    judge_one(Transcript(PROMPT, [3, 1, 4]), logits_for([3, 1, 4]), found)
    assert (found.num_tokens, found.num_exact, found.num_ties, found.num_wrong) == (3, 3, 0, 0)


def test_another_token_is_wrong_and_named() -> None:
    found = Findings()
    judge_one(Transcript(PROMPT, [3, 2, 4], name="this one"), logits_for([3, 1, 4]), found)
    assert (found.num_exact, found.num_wrong) == (2, 1)
    assert (found.wrong[0]["name"], found.wrong[0]["token"]) == ("this one", 1)


def test_one_that_falls_short_by_rounding_is_a_tie() -> None:
    found, logits = Findings(), logits_for([3, 1])
    logits[1, 2] = 4.0005
    judge_one(Transcript(PROMPT, [3, 1]), logits, found)
    assert (found.num_exact, found.num_ties, found.num_wrong) == (1, 1, 0)
    assert found.largest_tie == pytest.approx(5e-4, rel=1e-2)


def test_what_is_not_a_number_is_wrong() -> None:
    found = Findings()
    judge_one(Transcript(PROMPT, [3]), torch.full((1, 50), float("nan")), found)
    assert (found.num_exact, found.num_wrong) == (0, 1)


@pytest.mark.parametrize("seed", [7, 2**64 - 3])
def test_seeded_tokens_follow_from_seed_position_and_temperature(seed: int) -> None:
    count = 64
    logits = torch.randn(count, 300, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(len(PROMPT), len(PROMPT) + count)
    signed = seed if seed < 2**63 else seed - 2**64
    drawn = sampling.sample_unfiltered(
        logits, torch.full((count,), 0.8), torch.full((count,), signed), positions
    ).tolist()
    right, wrong = Findings(), Findings()
    judge_one(Transcript(PROMPT, drawn, temperature=0.8, seed=seed), logits, right)
    judge_one(Transcript(PROMPT, drawn, temperature=0.8, seed=seed + 1), logits, wrong)
    assert right.num_wrong == 0
    assert wrong.num_wrong > count // 2


def test_log_probabilities_are_compared() -> None:
    found, logits = Findings(), logits_for([3, 1])
    exact = torch.log_softmax(logits, dim=-1)[range(2), [3, 1]].tolist()
    judge_one(Transcript(PROMPT, [3, 1], logprobs=[exact[0], exact[1] + 0.25]), logits, found)
    assert found.num_logprobs == 2
    assert found.largest_logprob_error == pytest.approx(0.25, abs=1e-5)


def test_transcripts_of_all_lengths_are_judged_in_batches() -> None:
    """Padding must not be seen: what transformers generates alone is exact beside others."""
    directory = checkpoint("Qwen3ForCausalLM")
    prompts = [list(range(5, 5 + length)) for length in (1, 3, 40, 17, 250)]
    transcripts = [Transcript(prompt, greedy_tokens(directory, prompt, 6)) for prompt in prompts]
    found = Findings()
    Reference(directory, "cpu").judge([*transcripts, Transcript(PROMPT, [])], found)
    assert (found.num_tokens, found.num_wrong) == (30, 0)
    assert found.num_exact + found.num_ties == 30
