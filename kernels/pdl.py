# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Programmatic dependent launch: a kernel may start while the one before it in the stream still runs.

A kernel launched with `options()` must wait, by one of the two functions below, in every program before it reads what
an earlier kernel wrote, writes anything, or returns: a program that returned without waiting would let the kernel
after next run ahead of the one before. What comes before the wait hides the gap between two kernels: loads of weights,
and of whatever was written before the last full launch, one without `options()`. Kernels of which each lets the next
one in early may be begun many at a time, back to that launch; what each waits for is the end of all before it.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@functools.cache
def options() -> dict[str, bool]:
    """Launch arguments of a kernel with a `PDL` constexpr: on from Hopper on, off in the interpreter."""
    enabled = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    return {"PDL": enabled, "launch_pdl": enabled}


@triton.jit
def launch_and_wait(PDL: tl.constexpr):
    """Let the next kernel be started as soon as there is room, then wait: for kernels that leave room beside them.

    What the next kernel can do before its own wait, it does while the one before this finishes.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def wait(PDL: tl.constexpr):
    """Block until the kernels before this one have finished; then let the next one be started.

    Where programs fill the device, those of the next kernel that wait would take room from those that work.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
