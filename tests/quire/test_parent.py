"""A launched service never outlives its launcher."""

import asyncio
import os
import subprocess
import sys

import pytest

from quire.parent import PARENT_ENV
from tests.support.until import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")

CHILD = """
import signal
from quire.parent import follow_parent
follow_parent()
print("up", flush=True)
signal.pause()
"""
LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE,
                         env={**os.environ, sys.argv[2]: str(os.getpid())})
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_killed_launcher_takes_its_services_along() -> None:
    launcher = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LAUNCHER, CHILD, PARENT_ENV), stdout=subprocess.PIPE
    )
    assert launcher.stdout is not None
    pid = int(await launcher.stdout.readline())
    assert is_alive(pid)
    launcher.kill()
    await launcher.wait()
    await until(lambda: not is_alive(pid))


def test_a_service_whose_launcher_is_gone_already_ends_at_once() -> None:
    environment = {**os.environ, PARENT_ENV: "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_service_that_nobody_launched_goes_on() -> None:
    code = "from quire.parent import follow_parent; follow_parent(); print('up')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.stdout == b"up\n"
