"""Triton's penalties, biases, bans and masks against the references, in the interpreter or on the GPU."""

import pytest
import torch

from kernels.logits import Bans, Bias, Bitmask, TokenLists
from kernels.logits import kernel as logits_kernel
from kernels.logits import reference as logits_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One block that is not full, and two; neither a multiple of a mask's words.
VOCABS = [50, 2306]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", VOCABS)
def test_penalties_are_those_of_the_reference(vocab: int, dtype: torch.dtype) -> None:
    n = 4
    logits = (torch.randn(n, vocab, device=DEVICE) * 3).to(dtype)
    rows = torch.tensor([5, 0, 3, 2], device=DEVICE)
    counts = torch.randint(0, 3, (6, vocab), device=DEVICE, dtype=torch.int32)
    in_prompt = torch.rand(6, vocab, device=DEVICE) < 0.2
    repetition, frequency, presence = torch.rand(3, n, device=DEVICE) + 0.5
    repetition[1], frequency[1:3], presence[1] = 1, 0, 0
    inputs = (logits, rows, counts, in_prompt, repetition, frequency, presence)
    got, wanted = logits_kernel.apply_penalties(*inputs), logits_reference.apply_penalties(*inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(got[1], logits[1].float())


def test_penalties_of_rows_that_lie_apart_and_of_none() -> None:
    logits, counts = torch.randn(6, 300, device=DEVICE)[::2, 7:107], torch.ones(3, 100, device=DEVICE).int()
    rows, in_prompt = torch.arange(3, device=DEVICE), torch.zeros(3, 100, dtype=torch.bool, device=DEVICE)
    factors = torch.ones(3, device=DEVICE) * 2
    inputs = (logits, rows, counts, in_prompt, factors, factors, factors)
    got, wanted = logits_kernel.apply_penalties(*inputs), logits_reference.apply_penalties(*inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert logits_kernel.apply_penalties(*(tensor[:0] for tensor in inputs)).shape == (0, 100)


def lists_of(vocab: int, lengths: list[int]) -> TokenLists:
    """Random lists of these lengths, no token twice."""
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    tokens = torch.cat([torch.randperm(vocab)[:length] for length in lengths]).int()
    return TokenLists(starts.to(DEVICE), tokens.to(DEVICE))


def bias_of(vocab: int, lengths: list[int]) -> Bias:
    lists = lists_of(vocab, lengths)
    return Bias(lists, torch.randn(len(lists.tokens), device=DEVICE))


def bans_of(vocab: int, lengths: list[int]) -> Bans:
    """Of rows of 4, 5, 6, ... tokens that are banned until 6."""
    positions = torch.arange(4, 4 + len(lengths), device=DEVICE)
    return Bans(lists_of(vocab, lengths), positions, torch.full_like(positions, 6))


def bitmask_of(vocab: int, rows: list[int]) -> Bitmask:
    words = torch.randint(-(2**31), 2**31 - 1, (len(rows), (vocab + 31) // 32), device=DEVICE)
    return Bitmask(torch.tensor(rows, dtype=torch.int64, device=DEVICE), words.int())


def check_edits(logits: torch.Tensor, bias: Bias | None, bans: Bans | None, bitmask: Bitmask | None) -> None:
    got, wanted = logits.clone(), logits.clone()
    logits_kernel.edit_logits(got, bias, bans, bitmask)
    logits_reference.edit_logits(wanted, bias, bans, bitmask)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("vocab", VOCABS)
def test_each_edit_alone_and_all_together(vocab: int) -> None:
    logits = torch.randn(5, vocab, device=DEVICE)
    most = min(vocab, 700)
    bias = bias_of(vocab, [0, most, 1, 3, 0])
    bans = bans_of(vocab, [2, most, 4, 0, 5])
    bitmask = bitmask_of(vocab, [4, 1])
    check_edits(logits, bias, None, None)
    check_edits(logits, None, bans, None)
    check_edits(logits, None, None, bitmask)
    check_edits(logits, bias, bans, bitmask)
    check_edits(logits, bias_of(vocab, [0] * 5), bans_of(vocab, [0] * 5), bitmask_of(vocab, []))


def test_a_ban_outlives_a_bias_and_ends_at_its_length() -> None:
    lists = TokenLists(torch.tensor([0, 1, 2, 3]).int().to(DEVICE), torch.tensor([7, 7, 7]).int().to(DEVICE))
    bias = Bias(lists, torch.full((3,), 100.0, device=DEVICE))
    bans = Bans(lists, torch.tensor([5, 6, 7], device=DEVICE), torch.full((3,), 6, device=DEVICE))
    logits = torch.zeros(3, 40, device=DEVICE)
    logits_kernel.edit_logits(logits, bias, bans, None)
    assert logits[:, 7].tolist() == [float("-inf"), 100, 100]
    assert torch.isfinite(logits).sum() == 3 * 40 - 1


def test_a_mask_allows_the_bits_that_are_set_and_no_others() -> None:
    words = torch.zeros(1, 2, dtype=torch.int32)
    words[0, 0], words[0, 1] = -(2**31) + 1, 4
    logits = torch.zeros(2, 40, device=DEVICE)
    bitmask = Bitmask(torch.tensor([1], device=DEVICE), words.to(DEVICE))
    logits_kernel.edit_logits(logits, None, None, bitmask)
    assert torch.nonzero(torch.isfinite(logits[1]))[:, 0].tolist() == [0, 31, 34]
    assert bool(torch.isfinite(logits[0]).all())


def test_edits_of_rows_that_lie_apart() -> None:
    wide = torch.randn(8, 200, device=DEVICE)
    got, wanted = wide.clone()[::2, 5:105], wide.clone()[::2, 5:105]
    edits = (bias_of(100, [3, 0, 9, 1]), bans_of(100, [1, 2, 3, 4]), bitmask_of(100, [2, 0]))
    logits_kernel.edit_logits(got, *edits)
    logits_reference.edit_logits(wanted, *edits)
    assert torch.equal(got, wanted)
