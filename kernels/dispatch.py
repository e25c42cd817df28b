"""The one place that picks how an op runs: its Triton kernel on a GPU where it has one, else its reference."""

import functools
import importlib
import importlib.util
from types import ModuleType

import torch


@functools.cache
def _module(op: str, device_type: str) -> ModuleType:
    name = f"kernels.{op}.kernel"
    if device_type == "cuda" and importlib.util.find_spec(name) is not None:
        return importlib.import_module(name)
    return importlib.import_module(f"kernels.{op}.reference")


def implementation(op: str, tensor: torch.Tensor) -> ModuleType:
    """The module that implements `op` on the device of `tensor`: `kernels.<op>.kernel` or `.reference`."""
    return _module(op, tensor.device.type)
