"""Tokens per second through scheduler → tokenizer service → gateway → SSE clients, the model costing nothing.

    python -m benchmarks.control_plane --streams 64 256

Every service is a process of its own, as `quire serve` starts them; the model is replaced by
`benchmarks.instant_worker`, which answers each command at once, so that what is measured is our own
Python and gRPC. One more process holds all the SSE clients on raw sockets. The clock runs from the first
request sent to the last stream's `[DONE]`; tokens are those the server itself counts in `usage`, and every
stream must report all of its own. CPU is each process's user and system time over the same span, as the
operating system counts it.
"""

import argparse
import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.service_processes import API_KEY, DEMO_MODEL, SERVICES, ServiceProcesses, service_processes

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measurement:
    """One run: `streams` requests at once of `tokens_each` tokens."""

    streams: int
    tokens_each: int
    seconds: float
    tokens_per_s: float
    chunks: int
    tokens_per_chunk: float
    time_to_first_chunk_p50_s: float
    time_to_first_chunk_max_s: float
    cpu_us_per_token: dict[str, float]


async def _stream(port: int, number: int, max_tokens: int) -> tuple[int, int, float]:
    """One SSE client: tokens that the server counted, chunks received, seconds to the first."""
    body = json.dumps(
        {
            "prompt": f"Request number {number} of many:",
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    head = [
        "POST /v1/completions HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {API_KEY}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    started = time.monotonic()
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
    chunks, first, tail = 0, 0.0, b""
    while data := await reader.read(2**16):
        if not chunks and b"data: " in data:
            first = time.monotonic() - started
        chunks += data.count(b"data: ")
        tail = (tail + data)[-4096:]
    writer.close()
    if b"data: [DONE]" not in tail:
        raise RuntimeError(f"stream {number} broke off: {tail[-300:]!r}")
    last = json.loads(tail.split(b"data: ")[-2].partition(b"\n")[0])
    return last["usage"]["completion_tokens"], chunks, first


async def measure(running: ServiceProcesses, streams: int, tokens_each: int) -> Measurement:
    """All streams at once; RuntimeError if one does not get all of its tokens."""
    before = {name: _cpu_s(process.pid) for name, process in running.processes.items()}
    client_before = time.process_time()
    started = time.monotonic()
    results = await asyncio.gather(*(_stream(running.port, number, tokens_each) for number in range(streams)))
    seconds = time.monotonic() - started
    cpu_s = {name: _cpu_s(process.pid) - before[name] for name, process in running.processes.items()}
    cpu_s["clients"] = time.process_time() - client_before
    tokens = sum(result[0] for result in results)
    if tokens != streams * tokens_each:
        raise RuntimeError(f"{tokens} tokens came of {streams * tokens_each}")
    firsts = sorted(result[2] for result in results)
    chunks = sum(result[1] for result in results)
    return Measurement(
        streams=streams,
        tokens_each=tokens_each,
        seconds=round(seconds, 3),
        tokens_per_s=round(tokens / seconds),
        chunks=chunks,
        tokens_per_chunk=round(tokens / chunks, 2),
        time_to_first_chunk_p50_s=round(firsts[len(firsts) // 2], 4),
        time_to_first_chunk_max_s=round(firsts[-1], 4),
        cpu_us_per_token={name: round(1e6 * value / tokens, 2) for name, value in cpu_s.items()},
    )


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


async def _run(
    running: ServiceProcesses, counts: list[int], tokens_each: int, repeats: int
) -> list[Measurement]:
    await running.until_ready()
    await measure(running, 16, 64)  # first imports, first connections
    return [await measure(running, count, tokens_each) for count in counts for _ in range(repeats)]


def _print(rows: list[Measurement], title: str) -> None:
    print(f"\n{title}")
    names = [*SERVICES, "clients"]
    print(
        f"{'streams':>8} {'tokens/s':>9} {'tok/chunk':>9} {'first p50':>9}  CPU us/token: {' '.join(names)}"
    )
    for row in rows:
        cpu = " ".join(f"{row.cpu_us_per_token[name]:.1f}" for name in names)
        print(
            f"{row.streams:>8} {row.tokens_per_s:>9} {row.tokens_per_chunk:>9} "
            f"{row.time_to_first_chunk_p50_s * 1e3:>6.0f} ms  {cpu}"
        )


def main() -> None:
    """Measure with one decode step a command, and with run-ahead."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256], help="streams at once")
    parser.add_argument("--tokens", type=int, default=1000, help="tokens of each stream")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument(
        "--decode-steps", type=int, nargs="+", default=[1, 8], help="most decode steps a command"
    )
    parser.add_argument("--model", type=Path, default=DEMO_MODEL, help="whose tokenizer to use")
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    arguments = parser.parse_args()
    results = {}
    for decode_steps in arguments.decode_steps:
        worker = ("--max-rows", str(max(arguments.streams)), "--max-decode-steps", str(decode_steps))
        with service_processes(arguments.model, worker) as running:
            rows = asyncio.run(_run(running, arguments.streams, arguments.tokens, arguments.repeats))
        _print(rows, f"at most {decode_steps} decode steps a command, {arguments.tokens} tokens a stream")
        results[str(decode_steps)] = [asdict(row) for row in rows]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
