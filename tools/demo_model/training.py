"""The training loop: resumes, shows progress, and stops on a step or a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from demo_model.model import SHAPES, DemoModel, parameters_in
from demo_model.optimizer import Optimizer, rate_factor
from demo_model.packing import Pack, stream

SHORT_SHARE = 0.7
"""Share of the short pack in the loss of a step; each pack's loss is a mean over its weights."""


@dataclass
class Plan:
    """What a run is asked to do."""

    shape: str
    tokenizer: Path
    checkpoint: Path
    steps: int
    size: int
    seed: int
    workers: int
    minutes: float
    teacher: Path | None = None
    compile: bool = True


def pack_loss(
    logits: Tensor, targets: Tensor, weights: Tensor, teacher: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted mean loss of logits [T, V], and how many of the T weighted tokens were right and present.

    With `teacher` logits [T, V] the loss also holds the divergence from the teacher's distribution.
    """
    losses = functional.cross_entropy(logits.float(), targets, reduction="none")
    if teacher is not None:
        wanted = teacher.float().log_softmax(-1)
        losses = 0.3 * losses + (wanted.exp() * (wanted - logits.float().log_softmax(-1))).sum(-1)
    counted = weights > 0
    right = ((logits.argmax(-1) == targets) & counted).sum()
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6), right, counted.sum()


def to_device(pack: Pack, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tokens, positions, targets [T] int64, weights [T] float32 and bounds [N + 1] int32 on `device`."""
    whole = torch.from_numpy(pack.tokens.astype("int32")), torch.from_numpy(pack.positions.astype("int32"))
    targets = torch.from_numpy(pack.targets.astype("int32"))
    moved = [part.to(device, non_blocking=True).long() for part in (*whole, targets)]
    return (
        moved[0],
        moved[1],
        moved[2],
        torch.from_numpy(pack.weights).to(device),
        torch.from_numpy(pack.bounds).to(device),
    )


class Trainer:
    """A model, its optimizer and where the run stands."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(plan.seed)
        torch.set_float32_matmul_precision("high")
        self.model = DemoModel(SHAPES[plan.shape]).to(self.device)
        self.optimizer = Optimizer(self.model, plan.compile)
        self.step, self.seconds = 0, 0.0
        if plan.checkpoint.exists():
            self._restore(torch.load(plan.checkpoint, map_location=self.device, weights_only=True))
        self.teacher = load_model(plan.teacher, self.device) if plan.teacher else None
        self._loss: Callable[..., Any] = (
            torch.compile(self._pack_loss, dynamic=False) if plan.compile else self._pack_loss
        )
        print(
            f"{plan.shape}: {parameters_in(self.model):,} parameters, from step {self.step} on {self.device}",
            flush=True,
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.restore(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint, never leaving a half-written one in its place."""
        state = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state(), "step": self.step,
            "seconds": self.seconds, "shape": self.plan.shape,
        }  # fmt: skip
        partial = self.plan.checkpoint.with_suffix(".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, partial)
        partial.replace(self.plan.checkpoint)

    def _pack_loss(
        self,
        tokens: Tensor,
        positions: Tensor,
        targets: Tensor,
        weights: Tensor,
        bounds: Tensor,
        longest: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.model(tokens, positions, bounds, longest)
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(tokens, positions, bounds, longest)
        return pack_loss(logits, targets, weights, teacher)

    def train_step(self, packs: tuple[Pack, Pack]) -> list[Tensor]:
        """One optimizer step on a short and a long pack; returns (loss, right, counted) of each as six tensors."""
        shown: list[Tensor] = []
        for pack, share in zip(packs, (SHORT_SHARE, 1 - SHORT_SHARE), strict=True):
            loss, right, counted = self._loss(*to_device(pack, self.device), pack.longest)
            (loss * share).backward()
            shown += [loss.detach(), right, counted]
        self.optimizer.step(rate_factor(self.step, self.plan.steps))
        self.step += 1
        return shown

    def run(self) -> bool:
        """Train until the last step or the end of the minutes; True when the last step is done."""
        plan, began, since, tokens = self.plan, time.monotonic(), time.monotonic(), 0
        base = self.seconds
        data = stream(str(plan.tokenizer), plan.seed, plan.steps, plan.size, self.step, plan.workers)
        for packs in data:
            shown = self.train_step(packs)
            tokens += 2 * plan.size
            now = time.monotonic()
            self.seconds = base + now - began
            if self.step % 100 == 0 or self.step == plan.steps or self.step < 4:
                values = [value.item() for value in shown]
                self._show(values, tokens / max(1e-9, time.monotonic() - since))
                since, tokens = time.monotonic(), 0
            if self.step % 1000 == 0:
                self.save()
            if now - began > plan.minutes * 60:
                break
        self.save()
        return self.step >= plan.steps

    def _show(self, values: list[float], speed: float) -> None:
        left = (self.plan.steps - self.step) * 2 * self.plan.size / speed
        print(
            f"step {self.step}/{self.plan.steps}  "
            f"short loss {values[0]:.4f} right {values[1] / max(1, values[2]):.4f}  "
            f"long loss {values[3]:.4f} right {values[4] / max(1, values[5]):.4f}  "
            f"{speed / 1e3:.0f}k tokens/s  {self.seconds / 60:.1f} min done, {left / 60:.1f} left",
            flush=True,
        )


def load_model(checkpoint: Path, device: torch.device) -> DemoModel:
    """The model of a training checkpoint, for teaching or export."""
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    model = DemoModel(SHAPES[state["shape"]]).to(device)
    model.load_state_dict(state["model"])
    return model.requires_grad_(False)
