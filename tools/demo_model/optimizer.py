"""Muon for the matrices of the layers, AdamW for the embedding and the norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MUON_RATE = 0.02
ADAM_RATE = 3e-3


@torch.no_grad()
def orthogonal(stack: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices to `stack` [N, R, C], by five Newton-Schulz steps in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Momentum whose step is made orthogonal; matrices of one shape are stepped together."""

    def __init__(
        self, weights: list[nn.Parameter], compiled: bool, momentum: float = 0.95, decay: float = 0.05
    ) -> None:
        self.groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for weight in weights:
            self.groups.setdefault(tuple(weight.shape), []).append(weight)
        self.buffers = {
            size: torch.zeros_like(torch.stack(list(group))) for size, group in self.groups.items()
        }
        self.momentum, self.decay = momentum, decay
        self._orthogonal = torch.compile(orthogonal) if compiled else orthogonal

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step at learning rate `rate`; gradients are cleared."""
        for size, group in self.groups.items():
            gradient = torch.stack([weight.grad for weight in group if weight.grad is not None])
            buffer = self.buffers[size]
            buffer.lerp_(gradient, 1 - self.momentum)
            update = self._orthogonal(gradient.lerp(buffer, self.momentum))
            scale = max(1.0, size[0] / size[1]) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self.decay)
            torch._foreach_add_(group, list(update.unbind(0)), alpha=-rate * scale)
            for weight in group:
                weight.grad = None


class Optimizer:
    """Both optimizers behind one step."""

    def __init__(self, model: nn.Module, compiled: bool) -> None:
        matrices, others = [], []
        for name, weight in model.named_parameters():
            (matrices if weight.dim() == 2 and "embed" not in name else others).append(weight)
        self.muon = Muon(matrices, compiled)
        self.adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-10)

    def step(self, factor: float) -> None:
        """One step at `factor` times the full learning rates; gradients are cleared."""
        self.muon.step(MUON_RATE * factor)
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on."""
        return {"muon": self.muon.buffers, "adam": self.adam.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for size, buffer in state["muon"].items():
            self.muon.buffers[size].copy_(buffer)
        self.adam.load_state_dict(state["adam"])


def rate_factor(step: int, total: int, warmup: int = 100, decay_share: float = 0.45) -> float:
    """The learning rate over a run as a share of the full one: a short rise, a plateau, a line down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return min(1.0, (total - step) / max(1.0, decay_share * total))
