"""Triton's sampling and log-probabilities against the references, in the interpreter or on the GPU."""

from dataclasses import dataclass

import pytest
import torch

from kernels.logprobs import kernel as logprobs_kernel
from kernels.logprobs import reference as logprobs_reference
from kernels.sampling import kernel as sampling_kernel
from kernels.sampling import reference as sampling_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One chunk that is not full; two, the second with a block that is not full.
VOCABS = [50, 2304]


@dataclass
class Rows:
    """A batch and each row's parameters."""

    logits: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def random(cls, num_rows: int, vocab: int, *, spread: float = 3.0, in_bfloat16: bool = False) -> "Rows":
        """Unfiltered rows. Logits rounded to bfloat16, as a model's are, have many equals."""
        logits = torch.randn(num_rows, vocab, device=DEVICE) * spread
        if in_bfloat16:
            logits = logits.bfloat16().float()
        return cls(
            logits=logits,
            temperature=torch.rand(num_rows, device=DEVICE) + 0.5,
            top_k=torch.zeros(num_rows, dtype=torch.int64, device=DEVICE),
            top_p=torch.ones(num_rows, device=DEVICE),
            min_p=torch.zeros(num_rows, device=DEVICE),
            seeds=torch.randint(-(2**63), 2**63 - 1, (num_rows,), device=DEVICE),
            positions=torch.randint(0, 2**31, (num_rows,), device=DEVICE),
        )

    def sample(self) -> torch.Tensor:
        return sampling_kernel.sample(*vars(self).values())

    def reference(self, top_p_shift: float = 0.0) -> torch.Tensor:
        """On the CPU, whose argmax takes the first of equals."""
        shifted = torch.where(self.top_p < 1, (self.top_p + top_p_shift).clamp(0, 1 - 1e-7), self.top_p)
        columns = vars(self | {"top_p": shifted}).values()
        return sampling_reference.sample(*(column.cpu() for column in columns)).to(DEVICE)

    def __or__(self, changes: dict[str, torch.Tensor]) -> "Rows":
        return Rows(**{**vars(self), **changes})

    def check(self) -> None:
        """Equal to the reference, up to rounding of the mass that top-p compares."""
        tokens = self.sample()
        exact, under, over = self.reference(), self.reference(-1e-5), self.reference(1e-5)
        assert bool(((tokens == exact) | (tokens == under) | (tokens == over)).all())


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_greedy_takes_the_lowest_of_equal_maxima(vocab: int, dtype: torch.dtype) -> None:
    logits = torch.randint(-3, 3, (18, vocab), device=DEVICE).to(dtype)
    logits[0] = float("-inf")
    logits[1] = -0.0
    logits[1, 7:] = 0.0
    logits[2, -1] = 9
    # The GPU's argmax promises no order among equals.
    assert torch.equal(sampling_kernel.greedy(logits).cpu(), logits.cpu().argmax(dim=-1))
    assert torch.equal(sampling_kernel.greedy(logits[:2]).cpu(), logits[:2].cpu().argmax(dim=-1))


def test_greedy_of_rows_that_lie_apart_and_of_none() -> None:
    logits = torch.randn(6, 300, device=DEVICE)[::2, 7:107]
    assert torch.equal(sampling_kernel.greedy(logits), logits.argmax(dim=-1))
    assert sampling_kernel.greedy(logits[:0]).shape == (0,)


@pytest.mark.parametrize("vocab", VOCABS)
def test_temperature_alone(vocab: int) -> None:
    rows = Rows.random(5, vocab)
    rows.temperature[1] = 0
    rows.logits[2, ::2] = float("-inf")
    wanted = rows.reference()
    assert torch.equal(
        sampling_kernel.sample_unfiltered(rows.logits, rows.temperature, rows.seeds, rows.positions), wanted
    )
    assert torch.equal(rows.sample(), wanted)


@pytest.mark.parametrize("in_bfloat16", [False, True])
@pytest.mark.parametrize("vocab", VOCABS)
def test_rows_with_all_sorts_of_filters_in_one_batch(vocab: int, in_bfloat16: bool) -> None:
    rows = Rows.random(18, vocab, in_bfloat16=in_bfloat16)
    rows.temperature[0] = 0
    rows.top_k[1:9] = torch.tensor([1, 2, 5, 20, 40, vocab - 1, vocab, vocab + 9], device=DEVICE)
    rows.top_p[4:14] = torch.tensor([0.95, 0.5, 0.9, 0.1, 0.99, 0.0, 1e-9, 0.3, 0.8, 0.9999], device=DEVICE)
    rows.min_p[12:] = torch.tensor([0.05, 0.5, 0.1, 1.0, 1e-6, 0.02], device=DEVICE)
    rows.check()


def test_flat_rows_keep_equals_in_the_order_of_their_ids() -> None:
    rows = Rows.random(6, 300)
    rows.logits[:] = torch.randint(0, 2, (6, 300), device=DEVICE)
    rows.logits[5] = 0
    rows.temperature[:] = 1
    rows.top_k[:] = torch.tensor([3, 180, 0, 0, 200, 7], device=DEVICE)
    rows.top_p[:] = torch.tensor([1, 1, 0.11, 0.93, 0.5, 0.5], device=DEVICE)
    for shift in range(3):
        (rows | {"seeds": rows.seeds + shift}).check()


def test_top_k_counts_forbidden_tokens_last() -> None:
    rows = Rows.random(3, 200)
    rows.logits[:, 4:] = float("-inf")
    rows.top_k[:] = torch.tensor([2, 4, 90], device=DEVICE)
    rows.top_p[2] = 0.7
    rows.check()


def test_what_top_k_keeps_of_a_row_too_flat_for_a_list_is_searched() -> None:
    rows = Rows.random(4, 2500, spread=0.2)
    rows.logits[:] = rows.logits.bfloat16().float()
    rows.logits[2:] = 0.5
    rows.top_k[:] = torch.tensor([1100, 1500, 30, 1300], device=DEVICE)
    rows.top_p[:] = torch.tensor([1, 0.8, 1, 0.01], device=DEVICE)
    rows.min_p[0] = 0.8
    rows.check()


@pytest.mark.parametrize("top_p", [0.02, 0.3, 0.9])
def test_top_p_of_rows_whose_mass_is_spread_far_and_wide(top_p: float) -> None:
    """Draws of the first rounds are often outside, and go on until one is not."""
    rows = Rows.random(9, 5000, spread=0.3)
    rows.logits[3:6] = (rows.logits[3:6] * 8).bfloat16().float()
    rows.logits[6:8] = rows.logits[6:8].sign()
    rows.logits[8] = -7
    rows.logits[5, 7] = 60
    rows.top_p[:] = top_p
    rows.min_p[4] = 0.01
    rows.check()


# The interpreter's numpy warns of them.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_logits_that_are_not_numbers_give_some_token() -> None:
    rows = Rows.random(6, 3000)
    rows.logits[:3] = torch.nan
    rows.logits[3:] = float("-inf")
    rows.top_k[:] = torch.tensor([5, 0, 0, 5, 0, 0], device=DEVICE)
    rows.top_p[:] = torch.tensor([0.5, 0.5, 1, 0.5, 0.5, 1], device=DEVICE)
    rows.min_p[:] = torch.tensor([0.1, 0, 0.1, 0, 0, 0.1], device=DEVICE)
    tokens = rows.sample()
    assert bool(((tokens >= 0) & (tokens < 3000)).all())


def test_a_row_of_half_precision_draws_what_its_float32_copy_draws() -> None:
    rows = Rows.random(8, 3000)
    rows.top_k[2:4], rows.top_p[3:6], rows.min_p[6] = 30, 0.8, 0.05
    for dtype in (torch.bfloat16, torch.float16):
        narrow = rows | {"logits": rows.logits.to(dtype)}
        assert torch.equal(narrow.sample(), (rows | {"logits": narrow.logits.float()}).sample())
        narrow.check()


def test_scores_far_from_the_best_are_searched_too() -> None:
    """Top-k may reach further down than the surveys look."""
    rows = Rows.random(2, 500, spread=200.0)
    rows.top_k[:] = torch.tensor([300, 499], device=DEVICE)
    rows.check()


def test_a_row_alone_draws_what_it_draws_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_kernel, "_ENOUGH_PROGRAMS", 40)
    rows = Rows.random(17, 9000, in_bfloat16=True)
    assert sampling_kernel._chunk_size(17, 9000) > sampling_kernel._chunk_size(1, 9000)
    rows.top_k[:2], rows.top_p[1:3], rows.min_p[2:4] = 50, 0.9, 0.01
    together = rows.sample()
    alone = [
        Rows(**{name: column[i : i + 1] for name, column in vars(rows).items()}).sample() for i in range(5)
    ]
    assert torch.equal(torch.cat(alone), together[:5])


def test_logits_that_lie_apart_and_an_empty_batch() -> None:
    rows = Rows.random(3, 100)
    rows.top_k[:] = 9
    wide = torch.zeros(6, 300, device=DEVICE)
    wide[::2, 7:107] = rows.logits
    assert torch.equal((rows | {"logits": wide[::2, 7:107]}).sample(), rows.reference())
    assert Rows.random(0, 100).sample().shape == (0,)


def check_logprobs(logits: torch.Tensor, num_top: int) -> None:
    chosen = torch.randint(0, logits.shape[1], (len(logits),), device=DEVICE)
    values, top_ids, tops = logprobs_kernel.logprobs(logits, chosen, num_top)
    wanted_values, _, wanted_tops = logprobs_reference.logprobs(logits, chosen, num_top)
    torch.testing.assert_close(values, wanted_values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tops, wanted_tops, rtol=1e-5, atol=1e-5)
    wanted_ids = logits.float().sort(dim=-1, descending=True, stable=True).indices[:, :num_top]
    assert torch.equal(top_ids, wanted_ids)


@pytest.mark.parametrize("vocab", [50, 2048, 4500])
@pytest.mark.parametrize("num_top", [0, 1, 20, 40])
def test_logprobs_are_those_of_the_reference_and_equals_come_by_id(num_top: int, vocab: int) -> None:
    logits = torch.randn(3, vocab, device=DEVICE) * 5
    if num_top <= logprobs_kernel.MAX_TOP:
        logits = logits.bfloat16().float()
    logits[1, : vocab - 30] = float("-inf")
    check_logprobs(logits, num_top)


def test_logprobs_of_rows_that_are_all_the_same() -> None:
    check_logprobs(torch.zeros(2, 4500, device=DEVICE), 5)
    check_logprobs(torch.zeros(2, 300, device=DEVICE), 5)


def test_logprobs_of_many_rows_of_half_precision_and_of_none() -> None:
    check_logprobs((torch.randn(17, 5000, device=DEVICE) * 4).half(), 3)
    check_logprobs(torch.randn(6, 300, device=DEVICE)[::2, 7:107], 5)
    check_logprobs(torch.randn(0, 100, device=DEVICE), 5)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 64, 256])
def test_draws_are_the_same_however_often_they_are_made(rows: int) -> None:
    """Programs of one row run side by side, and what one finds out must not reach another in the middle of its work."""
    vocab = 151_936
    logits = torch.randn(rows, vocab, device="cuda").bfloat16() * 2
    logits[:, torch.randperm(vocab, device="cuda")[:50]] += 8
    ones, none = torch.ones(rows, device="cuda"), torch.zeros(rows, dtype=torch.int64, device="cuda")
    for top_p, min_p in [(0.9, 0.0), (0.3, 0.0), (1.0, 0.05), (0.95, 0.02)]:
        for _ in range(8):
            draw = torch.randint(0, 2**62, (2, rows), device="cuda")
            columns = (ones, none, ones * top_p, ones * min_p, *draw)
            first = sampling_kernel.sample(logits, *columns)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = sampling_kernel.sample(logits, *columns)
            for _ in range(40):
                graph.replay()
                assert torch.equal(found, first)
