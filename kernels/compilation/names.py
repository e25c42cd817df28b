"""Names under which compiled kernels are found again by another process.

Triton names a kernel by its source and that of all it calls; constants that a called function uses count only if that
function was named before (seen in 3.6 and 3.7). So the name depends on what a process launched first, unless all are
named in one order before the first launch.
"""

import importlib
import pkgutil

from triton.runtime.jit import JITCallable

import kernels

_WITHOUT_KERNELS = ("kernels.bench", "kernels.compilation")


def fix_names() -> None:
    """Name every function of every kernel, in the order of modules and of their lines."""
    modules = (module.name for module in pkgutil.walk_packages(kernels.__path__, "kernels."))
    for name in sorted(modules):
        if name.startswith(_WITHOUT_KERNELS):
            continue
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, JITCallable):
                _ = value.cache_key
