"""Random traffic through every real service for as long as one likes; nothing must grow.

    python -m benchmarks.soak --minutes 60

Gateway, tokenizer service, scheduler, a CPU worker with the demo model, and a real Redis where redis-server is
installed. A number of clients ask without pause: chats and completions, streamed and whole, one choice and several,
long prompts that share their beginning, stop strings, log-probabilities, deadlines that cannot be met, mistakes, wrong
keys; one in six leaves at a random moment. Every so often all stop. Once nothing runs any more, rows, blocks and queue
must be empty, and the memory and the open files of each process are noted. At the end: what each had at the first rest
(after the warm-up), half-way and at the last, and by how much its memory grew over the second half, by the line through
its rests there. Exit status 1 if anything was left over, if a process has over four more open files than at any rest of
the first half (connection pools meet new peaks), or if memory grew by more than `--most-growth` per cent in the second.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson

from benchmarks.service_processes import (
    API_KEY,
    DEMO_MODEL,
    REAL_WORKER,
    ServiceProcesses,
    service_processes,
)
from quire.bench.http_client import Exchange, HttpClient
from quire.bench.report import print_table, significant
from quire.launcher import free_port
from quire.rpc.channel import open_channel
from quire.v1 import scheduler_pb2_grpc, types_pb2

_POLL_S = 0.05
_REST_LIMIT_S = 120.0
_MORE_FILES = 4
_WORDS = (
    "apple",
    "river",
    "stone",
    "candle",
    "window",
    "garden",
    "button",
    "silver",
    "meadow",
    "lantern",
    "basket",
)
_TABLE = "\n".join(f"{word}-{number}: {number * 37 % 900 + 100}" for number in range(12) for word in _WORDS)
WORKER = (
    *("--device", "cpu", "--threads", "1", "--max-rows", "16"),
    *("--kv-cache-memory", "48MiB", "--max-model-len", "2048"),
)
# So small that the flight recorder is full after minutes, and grows no more.
SCHEDULER = ("--flight-record-bytes", str(2**22))


@dataclass(frozen=True)
class Rest:
    """What a process had while nothing ran."""

    at_s: float
    rss_bytes: int
    files: int
    threads: int


class Traffic:
    """Draws requests and counts what came of them."""

    def __init__(self, url: str, seed: int) -> None:
        self._random = Random(seed)
        self._clients = {
            path: HttpClient(url, path, API_KEY) for path in ("/v1/completions", "/v1/chat/completions")
        }
        self._strangers = HttpClient(url, "/v1/completions", "sk-wrong")
        self.outcomes: Counter[str] = Counter()
        """Requests by HTTP status, or by how they ended without one."""

    def close(self) -> None:
        """Close the connections that are kept."""
        for client in (*self._clients.values(), self._strangers):
            client.close()

    async def ask_each(self) -> None:
        """One that is answered, one that is a mistake, and one whose client leaves: every run has these."""
        for fields, patience_s in (
            ({"max_tokens": 1}, None),
            ({"max_tokens": 0}, None),
            ({"max_tokens": 1000, "ignore_eos": True}, 0.02),
        ):
            body = orjson.dumps({"prompt": "apple", **fields})
            self._note(await self._clients["/v1/completions"].post(body, patience_s=patience_s))

    async def ask(self) -> None:
        """One request, to its end or its client's."""
        random = self._random
        if random.random() < 0.01:
            self._note(await self._strangers.post(b'{"prompt": "who am I?"}'))
            return
        path = random.choice(list(self._clients))
        patience_s = random.expovariate(4.0) if random.random() < 1 / 6 else None
        self._note(await self._clients[path].post(orjson.dumps(self._body(path)), patience_s=patience_s))

    def _body(self, path: str) -> dict[str, Any]:
        random = self._random
        body: dict[str, Any] = {
            "max_tokens": random.randint(1, 120),
            "temperature": random.choice((0.0, 0.8)),
            "stream": random.random() < 0.6,
            "n": random.choice((1, 1, 1, 2, 3)),
            "ignore_eos": random.random() < 0.2,
        }
        words = " ".join(random.choices(_WORDS, k=random.randint(1, 60)))
        text = f"{_TABLE}\n\n{words}" if random.random() < 0.2 else words
        if path.endswith("chat/completions"):
            body["messages"] = [{"role": "user", "content": text}]
        elif random.random() < 0.3:
            body["prompt"] = [random.randrange(10, 1000) for _ in range(random.randint(1, 400))]
        else:
            body["prompt"] = text
        extras: list[dict[str, Any]] = [
            {"stop": [" the", "a"]},
            {"logprobs": 5} if "prompt" in body else {"logprobs": True, "top_logprobs": 5},
            {"timeout": 0.05},
            {"cache_salt": words[:8]},
            {"temperature": -1},
            {"max_tokens": 0},
        ]
        return body | (random.choice(extras) if random.random() < 0.4 else {})

    def _note(self, exchange: Exchange) -> None:
        status = b"".join(exchange.parts[:1])[9:12].decode(errors="replace")
        if "the client left" in exchange.failure:
            status = "left"
        elif exchange.failure:
            status = "broken"
        self.outcomes[status] += 1


class Soak:
    """Traffic with rests in between, and what was found at each."""

    def __init__(self, running: ServiceProcesses, pids: dict[str, int], traffic: Traffic, lanes: int) -> None:
        self._running = running
        self._pids = pids
        self.traffic = traffic
        self._lanes = lanes
        self._started = time.monotonic()
        self.rests: dict[str, list[Rest]] = {name: [] for name in pids}
        self.left_over: list[str] = []

    async def run(self, seconds: float, rests: int) -> None:
        """So many periods of traffic, each with a rest after it."""
        await self.traffic.ask_each()
        for _ in range(rests):
            await self._traffic_for(seconds / rests)
            await self._rest()

    async def _traffic_for(self, seconds: float) -> None:
        stop_at = time.monotonic() + seconds

        async def lane() -> None:
            while time.monotonic() < stop_at:
                await self.traffic.ask()

        await asyncio.gather(*(lane() for _ in range(self._lanes)))

    async def _rest(self) -> None:
        self.traffic.close()
        async with open_channel(self._running.scheduler) as channel:
            stub: scheduler_pb2_grpc.SchedulerAsyncStub = scheduler_pb2_grpc.SchedulerStub(channel)
            give_up_at = time.monotonic() + _REST_LIMIT_S
            while held := await self._held(stub):
                if time.monotonic() > give_up_at:
                    self.left_over.append(f"{time.monotonic() - self._started:.0f} s: {held}")
                    break
                await asyncio.sleep(_POLL_S)
        # Sockets that are closed leave the tables of their processes, later where the machine is busy.
        before: dict[str, int] = {}
        while (files := {name: _num_files(pid) for name, pid in self._pids.items()}) != before:
            if time.monotonic() > give_up_at:
                break
            before = files
            await asyncio.sleep(1.0)
        for name, pid in self._pids.items():
            self.rests[name].append(_look(pid, time.monotonic() - self._started))

    async def _held(self, stub: "scheduler_pb2_grpc.SchedulerAsyncStub") -> dict[str, int]:
        """What is not free."""
        status = await stub.GetStatus(types_pb2.GetStatusRequest())
        held = {"waiting": status.sequences_waiting, "tokens waiting": status.tokens_waiting}
        for replica in status.replicas:
            held["rows"] = held.get("rows", 0) + replica.rows_used
            held["blocks"] = held.get("blocks", 0) + replica.blocks_used
        return {name: count for name, count in held.items() if count}

    def findings(self, most_growth: float) -> list[str]:
        """What is not as it should be."""
        found = [f"left over after {each}" for each in self.left_over]
        for name, rests in self.rests.items():
            if more := more_files(rests):
                found.append(f"{name} has {more} more open files than in the first half")
            # Redis keeps a mark of each sequence for an hour (docs/redis.md).
            if name != "redis-server" and (grown := growth(rests)) > most_growth:
                found.append(f"the memory of {name} grew by {grown:.1f} % in the second half")
        return found


def more_files(rests: Sequence[Rest]) -> int:
    """By how many open files the last rest exceeds all of the first half, if by more than pools may have grown."""
    more = rests[-1].files - max(rest.files for rest in rests[: (len(rests) + 1) // 2])
    return more if more > _MORE_FILES else 0


def growth(rests: Sequence[Rest]) -> float:
    """Per cent by which memory grew over the second half of the run, by the line through its rests."""
    half = rests[len(rests) // 2 :]
    if len(half) < 2:
        return 0.0
    times, sizes = [rest.at_s for rest in half], [rest.rss_bytes for rest in half]
    slope = float(np.polyfit(times, sizes, 1)[0])
    return 100.0 * slope * (times[-1] - times[0]) / sizes[0]


def _look(pid: int, at_s: float) -> Rest:
    folder = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    rss, threads = int(fields["VmRSS"].split()[0]) * 1024, int(fields["Threads"])
    return Rest(at_s, rss, _num_files(pid), threads)


def _num_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@contextlib.contextmanager
def _redis() -> Iterator[tuple[str, int] | None]:
    """Its URL and process, if it is installed."""
    if shutil.which("redis-server") is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="quire-redis-") as folder:
        port = free_port()
        flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen(["redis-server", *flags], stdout=subprocess.DEVNULL)
        try:
            yield f"redis://127.0.0.1:{port}/0", process.pid
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


async def soak(
    running: ServiceProcesses, redis_pid: int | None, *, minutes: float, rests: int, lanes: int, seed: int
) -> Soak:
    """Traffic from `lanes` clients for so long, with so many rests; the first period warms up."""
    await running.until_ready()
    pids = {name: process.pid for name, process in running.processes.items()}
    if redis_pid is not None:
        pids["redis-server"] = redis_pid
    soaking = Soak(running, pids, Traffic(running.url, seed), lanes)
    await soaking.run(60.0 * minutes, rests)
    return soaking


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of traffic")
    parser.add_argument("--rests", type=int, default=12, help="how often all stop")
    parser.add_argument("--clients", type=int, default=12, help="that ask at once")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    parser.add_argument(
        "--most-growth", type=float, default=2.0, help="per cent of memory in the second half"
    )
    parser.add_argument("--json", type=Path, help="where to write what was found at each rest")
    arguments = parser.parse_args()
    with _redis() as redis:
        url, redis_pid = redis or ("", None)
        with service_processes(
            DEMO_MODEL, WORKER, SCHEDULER, worker_module=REAL_WORKER, redis_url=url
        ) as running:
            soaked = asyncio.run(
                soak(
                    running,
                    redis_pid,
                    minutes=arguments.minutes,
                    rests=arguments.rests,
                    lanes=arguments.clients,
                    seed=arguments.seed,
                )
            )
    outcomes = soaked.traffic.outcomes
    print(f"{sum(outcomes.values())} requests: {dict(outcomes.most_common())}")
    mib = 2**20
    print_table(
        [
            {
                "process": name,
                "MiB, first rest": significant(rests[0].rss_bytes / mib),
                "half": significant(rests[len(rests) // 2].rss_bytes / mib),
                "last": significant(rests[-1].rss_bytes / mib),
                "growth in 2nd half": f"{growth(rests):+.2f} %",
                "files": " -> ".join(
                    str(rest.files) for rest in (rests[0], rests[len(rests) // 2], rests[-1])
                ),
                "threads": f"{rests[0].threads} -> {rests[-1].threads}",
            }
            for name, rests in soaked.rests.items()
        ]
    )
    if arguments.json:
        found = {name: [asdict(rest) for rest in rests] for name, rests in soaked.rests.items()}
        arguments.json.write_text(json.dumps({"outcomes": outcomes, "rests": found}, indent=1) + "\n")
    findings = soaked.findings(arguments.most_growth)
    print("\n".join(findings) or "nothing was left over, and nothing grew")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
