"""Open-loop load: requests leave at times drawn beforehand, whether or not earlier ones were answered."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from quire.bench.http_client import Exchange, HttpClient
from quire.bench.workloads import Item

Arrivals = Literal["poisson", "fixed"]
_LAG_PERIOD_S = 0.005


@dataclass(frozen=True)
class Load:
    """Requests and when each leaves, in seconds from the start."""

    rate: float
    """Requests per second; infinite: all at once."""
    items: Sequence[Item]
    times_s: NDArray[np.float64]

    @property
    def name(self) -> str:
        """The rate, as a person writes it."""
        return "inf" if math.isinf(self.rate) else f"{self.rate:g}"


@dataclass(frozen=True)
class ClientCost:
    """Whether the client was the limit: its share of one core, and how late it was."""

    cpu_share: float
    lag_s: NDArray[np.float64]
    """Of a timer on its event loop."""
    send_delay_s: NDArray[np.float64]
    """From the time drawn to the request's being handed to its connection."""


def departures(rate: float, count: int, arrivals: Arrivals, seed: int) -> NDArray[np.float64]:
    """Times of `count` requests: a Poisson process of that rate, or even steps; all zero for an infinite rate."""
    if math.isinf(rate):
        return np.zeros(count)
    if arrivals == "fixed":
        return np.arange(count) / rate
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    times: NDArray[np.float64] = np.cumsum(gaps) - gaps[0]
    return times


def body_of(item: Item, *, model: str, temperature: float, cache_salt: str) -> bytes:
    """A streamed completion of token ids that runs to its full length."""
    return orjson.dumps(
        {
            "model": model,
            "prompt": item.prompt,
            "max_tokens": item.output_len,
            "temperature": temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_salt": cache_salt,
        }
    )


async def offer(
    client: HttpClient, load: Load, bodies: Sequence[bytes], *, patience_s: float | None = None
) -> tuple[list[Exchange], ClientCost]:
    """Send every request at its time; return when all are answered, or their clients have left."""
    delays = np.zeros(len(bodies))
    lags: list[float] = []
    watching = asyncio.create_task(_watch_lag(lags), name="lag")
    cpu_before, started = time.process_time(), time.perf_counter()

    async def one(number: int) -> Exchange:
        due = started + float(load.times_s[number])
        if (wait_s := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        delays[number] = time.perf_counter() - due
        return await client.post(bodies[number], patience_s=patience_s)

    try:
        exchanges = await asyncio.gather(*(one(number) for number in range(len(bodies))))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    elapsed_s = time.perf_counter() - started
    share = (time.process_time() - cpu_before) / elapsed_s
    return exchanges, ClientCost(share, np.array(lags or [0.0]), delays)


async def _watch_lag(lags: list[float]) -> None:
    while True:
        due = time.perf_counter() + _LAG_PERIOD_S
        await asyncio.sleep(_LAG_PERIOD_S)
        lags.append(time.perf_counter() - due)
