"""What bfloat16 costs a model lies within the tolerance that its format predicts, and a mistake does not."""

import math

import pytest
import torch

from benchmarks.gpu_proof.divergence import kl
from benchmarks.gpu_proof.reference import Reference
from benchmarks.gpu_proof.tolerance import rounding_tolerance
from tests.support.checkpoints import ARCHITECTURES, checkpoint


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_rounding_stays_within_it_and_wrong_positions_do_not(architecture: str) -> None:
    reference = Reference(checkpoint(architecture), "cpu")
    # Weights that bfloat16 holds exactly, as those of a checkpoint in it are.
    for parameter in reference.model.parameters():
        parameter.copy_(parameter.bfloat16().float())
    ids = torch.arange(10, 200)[None]
    tolerance = rounding_tolerance(reference, ids[0].tolist(), "bfloat16")
    exact = torch.log_softmax(reference.model(ids).logits, dim=-1)
    rounded = reference.model.bfloat16()

    def errors(positions: torch.Tensor) -> torch.Tensor:
        logits = rounded(ids, position_ids=positions[None]).logits
        return (torch.log_softmax(logits.float(), dim=-1) - exact).abs()

    right, wrong = (errors(positions) for positions in (torch.arange(190), torch.arange(190).flip(0)))
    assert right.flatten().quantile(0.99) <= tolerance.largest
    assert right.square().mean() <= 2 * tolerance.rms**2
    assert wrong.max() > tolerance.largest


def test_divergence_is_nothing_for_equals_and_known_for_two_tokens() -> None:
    exact = torch.tensor([[0.5, 0.25], [0.8, 0.1]], dtype=torch.float64).log()
    assert kl(exact, exact).tolist() == pytest.approx([0, 0])
    ours = torch.tensor([[0.25, 0.5]], dtype=torch.float64).log()
    # What is left is a quarter on both sides.
    assert kl(exact[:1], ours).item() == pytest.approx(0.25 * math.log(2))
