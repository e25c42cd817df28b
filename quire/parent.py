"""A service that a launcher started ends when the launcher does, however that ends."""

import ctypes
import os
import signal
import sys

PARENT_ENV = "QUIRE_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """Ask Linux for SIGTERM when the thread that started this process ends; elsewhere do nothing.

    The child does this and not the launcher between fork and exec: there, in a process with threads, nothing is safe.
    Raises SystemExit if the launcher is gone already.
    """
    launcher = os.environ.pop(PARENT_ENV, "")
    if not launcher or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):
        raise SystemExit(0)
