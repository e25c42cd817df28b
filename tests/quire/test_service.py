"""A service process starts, drains on SIGTERM, and says in one line why it could not run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from quire.settings import SERVICES

REPOSITORY = Path(__file__).parents[2]

PROGRAM = """
import asyncio
from pydantic import Field
from quire.errors import NotFound
from quire.service import run
from quire.settings import ServiceSettings

class ExampleSettings(ServiceSettings):
    listen: str = Field("nowhere", description="not used")
    mode: str = Field("good", description="how to behave")

class Example:
    def __init__(self, settings, shutdown):
        self.settings, self.shutdown = settings, shutdown
    async def start(self):
        if self.settings.mode == "bad-start":
            raise NotFound("there is no such model")
        if self.settings.mode == "late-failure":
            self.shutdown.fail("the weights are torn")
        print("started", flush=True)
        if self.settings.mode == "drained-by-call":
            self.shutdown.drain(0.05)
            self.shutdown.drain(0)
    async def drain(self):
        print("draining", flush=True)
        if self.settings.mode in ("never-drains", "drained-by-call"):
            await asyncio.Event().wait()
        print("drained", flush=True)
    async def stop(self):
        print("stopped", flush=True)

run("example", ExampleSettings, Example)
"""


def start(tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    program = tmp_path / "example.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY)},
    )


def test_sigterm_drains_then_stops_with_status_zero(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.terminate()
    out, _ = process.communicate()
    assert (process.returncode, out.split()) == (0, ["draining", "drained", "stopped"])


def test_a_drain_call_says_how_long_it_may_take_and_asking_again_changes_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, "--mode", "drained-by-call", "--grace-s", "3600")
    out, _ = process.communicate()
    assert (process.returncode, out.split()) == (0, ["started", "draining", "stopped"])


def test_a_second_signal_gives_up_the_drain(tmp_path: Path) -> None:
    process = start(tmp_path, "--mode", "never-drains")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.terminate()
    assert process.stdout.readline() == "draining\n"
    process.terminate()
    out, _ = process.communicate()
    assert (process.returncode, out.split()) == (0, ["stopped"])


def test_the_grace_period_bounds_the_drain(tmp_path: Path) -> None:
    process = start(tmp_path, "--mode", "never-drains", "--grace-s", "0")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.terminate()
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out.split()[-1] == "stopped"


def test_a_frozen_heap_is_nothing_to_the_garbage_collector() -> None:
    program = """
import gc
from quire.service import freeze_heap
kept, before = [[] for _ in range(10_000)], len(gc.get_objects())
freeze_heap()
print(before > 10_000 > 10 * len(gc.get_objects()))
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert found.stdout == "True\n"


@pytest.mark.parametrize(
    ("flags", "status", "line"),
    [
        (["--mode", "bad-start"], 1, "example: there is no such model"),
        (["--mode", "late-failure"], 1, "example: the weights are torn"),
        (["--grace-s=-1"], 2, "example: grace-s: Input should be greater than or equal to 0"),
    ],
)
def test_a_service_that_cannot_run_says_why_in_one_line(
    tmp_path: Path, flags: list[str], status: int, line: str
) -> None:
    process = start(tmp_path, *flags)
    _, error = process.communicate()
    assert process.returncode == status
    assert error.splitlines()[-1] == line
    assert "Traceback" not in error


@pytest.mark.parametrize("service", SERVICES)
def test_a_taken_address_is_one_line_and_nothing_of_grpc_s_own(tmp_path: Path, service: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("QUIRE_", "GRPC_"))}
    config = tmp_path / "quire.toml"
    config.write_text(
        "".join(f'[{name}]\nmodel = "models/demo"\n' for name in ("tokenizer_svc", "gpu_worker"))
    )
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        ended = subprocess.run(
            [sys.executable, "-m", service, "--listen", address, "--config", str(config)],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env={**environment, "QUIRE_HOME": str(tmp_path)},
        )
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith(f"{service}: cannot listen on {address}: ")
