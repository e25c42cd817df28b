"""How soon a worker behind a network that drops everything is given up, and how soon it has work again.

    python -m benchmarks.half_open          # needs root, and `ip` with network namespaces

`benchmarks.instant_worker` runs in a network namespace of its own, a scheduler outside of it. Then each end is told a
wrong hardware address of the other: every packet is sent and thrown away, no connection is reset, and nobody is told.
Seconds are from there to when the scheduler says that it has no worker, without a request and in the middle of one;
and from the mending to when it has.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from quire.packing import pack_int32
from quire.rpc.channel import open_channel
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2

REPOSITORY = Path(__file__).parents[1]
_NAME = f"quire-{os.getpid()}"
_OUTSIDE, _INSIDE = "10.213.0.1", "10.213.0.2"
_PORT = 7400
_NOWHERE = "02:00:00:00:00:01"
_POLL_S = 0.02


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Network:
    """A pair of virtual cards, one of them in a namespace."""

    outside, inside = f"qo{os.getpid()}", f"qi{os.getpid()}"

    def make(self) -> None:
        """Raises CalledProcessError where that is not allowed."""
        _ip("netns", "add", _NAME)
        _ip("link", "add", self.outside, "type", "veth", "peer", "name", self.inside, "netns", _NAME)
        _ip("addr", "add", f"{_OUTSIDE}/24", "dev", self.outside)
        _ip("link", "set", self.outside, "up")
        _ip("-n", _NAME, "addr", "add", f"{_INSIDE}/24", "dev", self.inside)
        _ip("-n", _NAME, "link", "set", self.inside, "up")

    def cut(self) -> None:
        """Throw every packet away, both ways."""
        _ip("neigh", "replace", _INSIDE, "lladdr", _NOWHERE, "nud", "permanent", "dev", self.outside)
        _ip(
            "-n",
            _NAME,
            "neigh",
            "replace",
            _OUTSIDE,
            "lladdr",
            _NOWHERE,
            "nud",
            "permanent",
            "dev",
            self.inside,
        )

    def mend(self) -> None:
        """Go on after `cut`."""
        _ip("neigh", "del", _INSIDE, "dev", self.outside)
        _ip("-n", _NAME, "neigh", "del", _OUTSIDE, "dev", self.inside)

    def remove(self) -> None:
        """The pair goes with its namespace."""
        subprocess.run(["ip", "netns", "del", _NAME], check=False)


@contextmanager
def processes(folder: str) -> Iterator[str]:
    """A worker in the namespace and a scheduler outside; the scheduler's address."""
    listen = f"unix:{folder}/scheduler"
    worker = ["-m", "benchmarks.instant_worker", "--listen", f"{_INSIDE}:{_PORT}", "--step-us", "20000"]
    scheduler = ["-m", "scheduler_svc", "--listen", listen, "--workers", f"{_INSIDE}:{_PORT}"]
    commands = [["ip", "netns", "exec", _NAME, sys.executable, *worker], [sys.executable, *scheduler]]
    started = [
        subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
        for command in commands
    ]
    try:
        yield listen
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def until(
    stub: "scheduler_pb2_grpc.SchedulerAsyncStub", state: types_pb2.ServiceState.ValueType
) -> float:
    """Seconds until the scheduler is in this state."""
    began = time.perf_counter()
    while True:
        with contextlib.suppress(Exception):
            if (await stub.GetStatus(types_pb2.GetStatusRequest(), timeout=1.0)).state == state:
                return time.perf_counter() - began
        await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def request_under_way(stub: "scheduler_pb2_grpc.SchedulerAsyncStub") -> AsyncIterator[None]:
    """A sequence decodes within."""
    sampling = types_pb2.SamplingParams(temperature=0.0, max_tokens=8000)
    call = stub.Generate(
        scheduler_pb2.TokenRequest(prompt_token_ids=pack_int32(range(16)), sampling=sampling)
    )
    await call.read()
    try:
        yield
    finally:
        call.cancel()


async def measure(network: Network, scheduler: str, repeats: int) -> None:
    """Print a line for each cut."""
    async with open_channel(scheduler) as channel:
        stub: scheduler_pb2_grpc.SchedulerAsyncStub = scheduler_pb2_grpc.SchedulerStub(channel)
        await until(stub, types_pb2.SERVICE_STATE_READY)
        for _ in range(repeats):
            for what, within in (("idle", contextlib.nullcontext()), ("a request", request_under_way(stub))):
                async with within:
                    network.cut()
                    lost_s = await until(stub, types_pb2.SERVICE_STATE_STARTING)
                network.mend()
                back_s = await until(stub, types_pb2.SERVICE_STATE_READY)
                print(
                    f"{what:10} given up after {lost_s:5.2f} s, has work again after {back_s:5.2f} s",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="cuts of each kind")
    arguments = parser.parse_args()
    network = Network()
    try:
        network.make()
        with tempfile.TemporaryDirectory(prefix="quire-") as folder, processes(folder) as scheduler:
            asyncio.run(measure(network, scheduler, arguments.repeats))
    finally:
        network.remove()


if __name__ == "__main__":
    main()
