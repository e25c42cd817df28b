"""Goodput at several times of what can be served: who is refused, how soon, and whether who is let in gets all of it.

    python -m benchmarks.overload
    python -m benchmarks.overload --silent --max-wait 2

Every service is a process of its own; in the model's place is `benchmarks.instant_worker` with a step time of its own,
so that rows and steps are what is short, as on a GPU, and not the CPU. First the capacity is measured: half again as
many clients as there are rows, each asking again as soon as it has its answer. Then requests come at multiples of it,
open loop (whether or not earlier ones were answered), in a Poisson process. A request is good if its last token came
within the deadline. Clients say in `timeout` for how long they will wait; with `--silent` they say nothing and leave
then, and what keeps waits within their patience is the scheduler's own bound, `--max-wait`. Goodput is counted from
when the first may have waited for its deadline to the last arrival.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import orjson

from benchmarks.service_processes import API_KEY, DEMO_MODEL, ServiceProcesses, service_processes
from quire.bench.http_client import Exchange, HttpClient, read_stream
from quire.bench.load import Load, departures, offer
from quire.bench.report import print_table, significant, spread
from quire.bench.workloads import Item

_WARM_UP_S = 3.0
_CAPACITY_S = 10.0


@dataclass(frozen=True)
class Shape:
    """What clients ask for, and how long they wait."""

    prompt_len: int
    output_len: int
    """Tokens; each request has from half to one and a half times as many of either."""
    deadline_s: float
    is_told: bool
    """Whether requests carry the deadline; else clients leave when it has passed."""

    def items(self, count: int, vocab_size: int, seed: int) -> list[Item]:
        """Random prompts."""
        random = Random(seed)

        def around(mean: int) -> int:
            return random.randint(max(1, mean // 2), max(1, mean + mean // 2))

        return [
            Item(
                [random.randrange(10, vocab_size) for _ in range(around(self.prompt_len))],
                around(self.output_len),
            )
            for _ in range(count)
        ]

    def body(self, item: Item) -> bytes:
        """A streamed completion of token ids that runs to its full length."""
        fields = {
            "prompt": item.prompt,
            "max_tokens": item.output_len,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return orjson.dumps(fields | ({"timeout": self.deadline_s} if self.is_told else {}))


@dataclass(frozen=True)
class Outcome:
    """What came of one request; seconds since it was sent."""

    status: int
    """Of HTTP; 0: the connection broke before there was one."""
    retry_after: bool
    took_s: float
    """To the last byte that said something."""
    first_s: float
    """To the first token; 0: there was none."""
    last_at: float
    """When the last byte came (perf_counter)."""
    is_whole: bool
    """Whether every token came."""
    error: str

    @classmethod
    def of(cls, exchange: Exchange, item: Item) -> "Outcome":
        """Read the raw response."""
        head = b"".join(exchange.parts[:10]).partition(b"\r\n\r\n")[0]
        status = re.match(rb"HTTP/1.1 (\d+)", head)
        stream = read_stream(exchange)
        is_whole = not stream.error and stream.num_tokens == item.output_len
        last_s = stream.times_s[-1] if is_whole else (exchange.times_s or [time.perf_counter()])[-1]
        return cls(
            status=int(status[1]) if status else 0,
            retry_after=re.search(rb"(?i)\r\nretry-after: *[1-9]\d*(\r|$)", head) is not None,
            took_s=float(last_s) - exchange.sent_s,
            first_s=float(stream.times_s[0]) - exchange.sent_s if is_whole else 0.0,
            last_at=float(last_s),
            is_whole=is_whole,
            error=stream.error,
        )


@dataclass(frozen=True)
class Row:
    """One load."""

    load: float
    """Times the capacity."""
    requests_per_s: float
    sent: int
    good: int
    late: int
    """Whole, but after the deadline."""
    refused: int
    refused_without_time: int
    """429 without Retry-After: must be 0."""
    lost: int
    """Let in, and ended by the server before they were whole: must be 0."""
    left: int
    """Given up by clients that had not said for how long they would wait."""
    other: int
    """Neither answered nor refused with 429: must be 0."""
    goodput_per_s: float
    refusal_ms: dict[str, float]
    ttft_ms: dict[str, float]
    e2e_ms: dict[str, float]
    first_errors: list[str]
    client_lag_p99_ms: float


async def capacity(client: HttpClient, shape: Shape, vocab_size: int, lanes: int, seconds: float) -> float:
    """Requests per second with so many clients that ask one after the other, none refused."""
    items = shape.items(10_000, vocab_size, seed=-1)
    ended: list[float] = []
    stop_at = time.perf_counter() + seconds

    async def lane(number: int) -> None:
        for item in items[number::lanes]:
            exchange = await client.post(shape.body(item))
            outcome = Outcome.of(exchange, item)
            if not outcome.is_whole:
                raise RuntimeError(f"a request failed while the capacity was measured: {outcome}")
            if exchange.times_s[-1] > stop_at:
                return
            ended.append(exchange.times_s[-1])

    await asyncio.gather(*(lane(number) for number in range(lanes)))
    first = ended[lanes // 2]
    return (len(ended) - lanes // 2 - 1) / (ended[-1] - first)


async def measure(
    client: HttpClient, shape: Shape, vocab_size: int, load: float, rate: float, seconds: float, seed: int
) -> Row:
    """Offer `rate` requests per second for so long."""
    count = max(1, round(rate * seconds))
    offered = Load(rate, shape.items(count, vocab_size, seed), departures(rate, count, "poisson", seed))
    bodies = [shape.body(item) for item in offered.items]
    started = time.perf_counter()
    patience_s = None if shape.is_told else shape.deadline_s
    exchanges, cost = await offer(client, offered, bodies, patience_s=patience_s)
    outcomes = [Outcome.of(exchange, item) for exchange, item in zip(exchanges, offered.items, strict=True)]
    whole = [outcome for outcome in outcomes if outcome.is_whole]
    good = [outcome for outcome in whole if outcome.took_s <= shape.deadline_s]
    refused = [outcome for outcome in outcomes if outcome.status == 429]
    left = [o for o in outcomes if "the client left" in o.error]
    # A 504 was let in, and its time ran out.
    lost = [o for o in outcomes if o.status in (200, 504) and not o.is_whole and o not in left]
    last_s = float(offered.times_s[-1])
    counted = sum(shape.deadline_s <= outcome.last_at - started <= last_s for outcome in good)
    return Row(
        load=load,
        requests_per_s=significant(count / last_s),
        sent=count,
        good=len(good),
        late=len(whole) - len(good),
        refused=len(refused),
        refused_without_time=sum(not outcome.retry_after for outcome in refused),
        lost=len(lost),
        left=len(left),
        other=count - len(whole) - len(refused) - len(lost) - len(left),
        goodput_per_s=significant(counted / (last_s - shape.deadline_s)),
        refusal_ms=spread([outcome.took_s for outcome in refused], 1e3),
        ttft_ms=spread([outcome.first_s for outcome in whole], 1e3),
        e2e_ms=spread([outcome.took_s for outcome in whole], 1e3),
        first_errors=[o.error for o in outcomes if not o.is_whole and o.status != 429][:3],
        client_lag_p99_ms=spread(cost.lag_s, 1e3)["p99"],
    )


async def run(
    running: ServiceProcesses, shape: Shape, lanes: int, loads: Sequence[float], seconds: float, seed: int
) -> list[Row]:
    """The capacity, then every load."""
    await running.until_ready()
    client = HttpClient(running.url, "/v1/completions", API_KEY)
    patient = Shape(shape.prompt_len, shape.output_len, shape.deadline_s, is_told=False)
    try:
        await capacity(client, patient, running.vocab_size, lanes, _WARM_UP_S)
        peak = await capacity(client, patient, running.vocab_size, lanes, _CAPACITY_S)
        print(f"capacity: {peak:.1f} requests/s", flush=True)
        return [
            await measure(client, shape, running.vocab_size, load, load * peak, seconds, seed + number)
            for number, load in enumerate(loads)
        ]
    finally:
        client.close()


def table(rows: Sequence[Row]) -> list[dict[str, object]]:
    """What a person wants to see."""
    best = max(row.goodput_per_s for row in rows)
    return [
        {
            "load": f"{row.load:g}x",
            "req/s": row.requests_per_s,
            "sent": row.sent,
            "good": row.good,
            "late": row.late,
            "refused": row.refused,
            "no Retry-After": row.refused_without_time,
            "lost": row.lost,
            "left": row.left,
            "other": row.other,
            "goodput/s": row.goodput_per_s,
            "of best": f"{row.goodput_per_s / best:.1%}",
            "refusal p50 ms": row.refusal_ms["p50"],
            "p99": row.refusal_ms["p99"],
            "TTFT p99": row.ttft_ms["p99"],
            "E2E p99": row.e2e_ms["p99"],
            "lag p99": row.client_lag_p99_ms,
        }
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--loads", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0], help="times the capacity"
    )
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of arrivals at each load")
    parser.add_argument("--rows", type=int, default=16, help="rows of the worker")
    parser.add_argument("--step-ms", type=float, default=25.0, help="of each step")
    parser.add_argument(
        "--token-us", type=float, default=100.0, help="that each prompt position adds to its step"
    )
    parser.add_argument("--prompt-len", type=int, default=100, help="mean tokens of a prompt")
    parser.add_argument("--output-len", type=int, default=32, help="mean tokens of an answer")
    parser.add_argument(
        "--deadline", type=float, default=4.0, help="seconds for which a client waits for its answer"
    )
    parser.add_argument(
        "--silent", action="store_true", help="requests do not say for how long their clients wait"
    )
    parser.add_argument(
        "--max-wait", type=float, help="the scheduler's --max-wait-s; by default its own default"
    )
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals")
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    arguments = parser.parse_args()
    shape = Shape(arguments.prompt_len, arguments.output_len, arguments.deadline, not arguments.silent)
    worker = [
        *("--max-rows", str(arguments.rows), "--step-us", str(1e3 * arguments.step_ms)),
        *("--token-us", str(arguments.token_us)),
    ]
    scheduler = () if arguments.max_wait is None else ("--max-wait-s", str(arguments.max_wait))
    with service_processes(DEMO_MODEL, worker, scheduler) as running:
        rows = asyncio.run(
            run(
                running,
                shape,
                arguments.rows + arguments.rows // 2,
                arguments.loads,
                arguments.duration,
                arguments.seed,
            )
        )
    print_table(table(rows))
    for row in rows:
        for error in row.first_errors:
            print(f"{row.load:g}x: {error}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
