"""What a client that reads one byte a second does to the sixty-three others' time between tokens.

    python -m benchmarks.slow_client

Every service is a process of its own, `benchmarks.instant_worker` with a step time in the model's place. Rounds of 64
streams alternate: in one the last client, which asks for 16 choices with log-probabilities so that its stream is a
heavy one, reads it as it comes; in the other it reads a byte a second until the gateway ends it. Gaps are those
between arrivals at the other 63, every one of which must get all of its tokens. The ratio is of rounds of one run.
"""

import argparse
import asyncio
import contextlib
import socket
from dataclasses import dataclass, field

import numpy as np
import orjson

from benchmarks.service_processes import API_KEY, DEMO_MODEL, ServiceProcesses, service_processes
from quire.bench.http_client import HttpClient, read_stream
from quire.bench.report import print_table, spread

_STREAMS = 64
_CHOICES = 16
"""Of the last client: its stream must be more than what the kernel keeps for it (4 MB) and the gateway (1 MiB)."""
_SLOW = b"more slowly"


def _body(number: int, tokens: int, **more: int) -> bytes:
    fields = {
        "prompt": f"Stream number {number} of many:",
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return orjson.dumps(fields | more)


@dataclass
class Round:
    """What the neighbours felt."""

    is_slow: bool
    gaps_s: list[float] = field(default_factory=list)
    whole: int = 0
    """Neighbours that got every token."""
    ended: str = ""
    """What became of the last client."""


async def read_a_byte_a_second(port: int, body: bytes, stop: asyncio.Event) -> str:
    """Return what the gateway made of it."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        # Small, so that what the kernels keep is little beside what the gateway keeps.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        await loop.sock_sendall(client, head.encode() + body)
        while not stop.is_set():
            await loop.sock_recv(client, 1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)
        tail = b""
        while data := await loop.sock_recv(client, 2**16):
            tail = (tail + data)[-2000:]
        return "ended by the gateway" if _SLOW in tail else "never ended"


async def play(running: ServiceProcesses, client: HttpClient, tokens: int, *, is_slow: bool) -> Round:
    """All 64 streams at once, to the end of the neighbours'."""
    played = Round(is_slow)
    stop = asyncio.Event()
    heavy = _body(_STREAMS, tokens, logprobs=20, n=_CHOICES)

    async def last_client() -> str:
        if is_slow:
            return await read_a_byte_a_second(running.port, heavy, stop)
        stream = read_stream(await client.post(heavy))
        return stream.error or f"whole: {stream.num_tokens} tokens"

    last = asyncio.create_task(last_client())
    exchanges = await asyncio.gather(*(client.post(_body(number, tokens)) for number in range(_STREAMS - 1)))
    stop.set()
    played.ended = await last
    for exchange in exchanges:
        stream = read_stream(exchange)
        played.whole += not stream.error and stream.num_tokens == tokens
        played.gaps_s += np.diff(stream.times_s).tolist()
    return played


async def measure(running: ServiceProcesses, tokens: int, repeats: int) -> list[Round]:
    """Rounds of either kind, in turn."""
    await running.until_ready()
    client = HttpClient(running.url, "/v1/completions", API_KEY)
    try:
        await play(running, client, 100, is_slow=False)
        return [
            await play(running, client, tokens, is_slow=is_slow)
            for _ in range(repeats)
            for is_slow in (False, True)
        ]
    finally:
        client.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1000, help="of each stream")
    parser.add_argument("--step-ms", type=float, default=25.0, help="of each step")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of either kind")
    arguments = parser.parse_args()
    worker = ("--max-rows", str(_STREAMS + _CHOICES), "--step-us", str(1e3 * arguments.step_ms))
    with service_processes(DEMO_MODEL, worker) as running:
        rounds = asyncio.run(measure(running, arguments.tokens, arguments.repeats))
    table = []
    for each in rounds:
        gaps = spread(each.gaps_s, 1e3)
        reads = "a byte a second" if each.is_slow else "as it comes"
        figures = {f"gap {name} ms": gaps[name] for name in ("mean", "p50", "p99", "max")}
        table.append(
            {"the last one reads": reads, "others whole": each.whole, **figures, "the last one": each.ended}
        )
    print_table(table)
    of = {
        slow: spread([gap for each in rounds if each.is_slow == slow for gap in each.gaps_s])
        for slow in (False, True)
    }
    ratios = ", ".join(f"{name} {of[True][name] / of[False][name]:.3f}" for name in ("mean", "p50", "p99"))
    print(f"with the slow one / without: {ratios}")


if __name__ == "__main__":
    main()
