"""`python -m kernels.compilation.compiler CAPABILITY FD FD …`: processes that compile what they are told.

Each pair of file descriptors belongs to one of them: requests come by the first, answers go by the second. A request is
a line with a JSON object: a kernel's module and name, and Triton's own description of what to compile
("specialization"). It is answered by a line, empty or with what went wrong. The GPU is not touched. A process ends with
its requests.
"""

import importlib
import json
import os
import sys
from operator import attrgetter

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver

from kernels.compilation.names import fix_names


class _Absent:
    """Says for which GPU to compile."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


def _compile(line: str) -> str:
    try:
        asked = json.loads(line)
        kernel = attrgetter(asked["name"])(importlib.import_module(asked["module"]))
        compiled = kernel.preload(asked["specialization"])
        # Up to 3.6 Triton has a C compiler make a function that launches a kernel.
        if hasattr(nvidia, "make_launcher"):
            nvidia.CudaLauncher(compiled.src, compiled.metadata)
    except Exception as error:  # whatever it is: the launch itself will meet it, and say so
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return ""


def _serve(requests: int, answers: int) -> None:
    with os.fdopen(requests) as lines, os.fdopen(answers, "w") as out:
        for line in lines:
            print(_compile(line), file=out, flush=True)


def main() -> None:
    """Import and name everything once, then divide."""
    capability, *descriptors = map(int, sys.argv[1:])
    driver.set_active(_Absent(capability))
    fix_names()
    pairs = list(zip(descriptors[::2], descriptors[1::2], strict=True))
    for pair in pairs:
        if os.fork() == 0:
            for descriptor in descriptors:
                if descriptor not in pair:
                    os.close(descriptor)
            _serve(*pair)
            os._exit(0)
    for descriptor in descriptors:
        os.close(descriptor)
    for _ in pairs:
        os.wait()


if __name__ == "__main__":
    main()
