# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Programmatic dependent launch: a kernel may start while the one before it in the stream still runs.

A kernel launched with `options()` must wait, by one of the two functions below, in every program before it reads what
an earlier kernel wrote, writes anything, or returns: a program that returned without waiting would let the kernel
after next run ahead of the one before. Loads of weights may come first, which is what hides the gap between two
kernels; so weights must not be the work of the two kernels before.
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
    """Let the next kernel be started as soon as there is room, then wait: for small kernels before large ones.

    What the next kernel can do before its own wait, it does while the one before this finishes.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def wait(PDL: tl.constexpr):
    """Block until the kernels before this one have finished; then let the next one be started.

    The other order was measured on large products: programs that wait take room from those that work.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
