"""A command that was handed to the device, and its result once it is there."""

from dataclasses import dataclass

import torch

from gpu_worker.step_output import CommandOutline, StepLogprobs, step_result
from gpu_worker.step_slots import SlotRing, StepSlot
from quire.v1 import worker_pb2


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """To be waited for once, by any thread, in the order of the launches."""

    outline: CommandOutline
    slot: StepSlot
    ring: SlotRing
    logprobs: list[torch.Tensor]
    """On the host once the slot's copies have ended: chosen, top ids and top log-probabilities of each step."""
    copied_from: list[torch.Tensor]
    """The same on the device, kept until they were copied."""
    rows_used: int
    """Rows in use after the command's delta."""

    def wait(self) -> worker_pb2.StepResult:
        """Block until the command has retired; gives its buffers back."""
        try:
            results, step_s = self.slot.wait()
            arrays = [tensor.numpy() for tensor in self.logprobs]
            logprobs = [StepLogprobs(*arrays[first : first + 3]) for first in range(0, len(arrays), 3)]
            return step_result(self.outline, results, logprobs, step_s)
        finally:
            self.ring.give_back(self.slot)
