"""`quire bench serve`: open-loop load over HTTP, and what its clients feel."""

import asyncio
import math
import secrets
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from quire.bench.datasets import random_items, read_conversations, sampled_items
from quire.bench.engine import cost_of_worker, max_model_len, measure_rooflines, model_directory, model_name
from quire.bench.floors import ModelCost, Rooflines, workload_floor
from quire.bench.http_client import Exchange, HttpClient, Stream, read_json, read_stream
from quire.bench.load import Arrivals, ClientCost, Load, body_of, departures, offer
from quire.bench.peers import peer_serving
from quire.bench.predictions import PredictionErrors, read_prediction_errors
from quire.bench.report import Report, significant, spread
from quire.bench.server_process import RunningServer, started_server
from quire.bench.workloads import Item, Workload
from quire.errors import Internal
from quire.model_files import read_json as read_model_json

_WARM_UP_REQUESTS = 8
_FOREIGN_VOCAB_SIZE = 32_000


@dataclass(frozen=True)
class ServingOptions:
    """What to measure."""

    model: str
    """Of the server that is started; empty: the demo model."""
    url: str
    """Of a server that runs; empty: one is started."""
    api_key: str
    """Of a server that runs."""
    device: str
    server_flags: Sequence[str]
    """Further flags of the server that is started."""
    rates: Sequence[float]
    """Requests per second, one measurement each; infinite: all at once."""
    arrivals: Arrivals
    duration_s: float
    """Of the arrivals at each finite rate."""
    at_once: int
    """Requests at an infinite rate."""
    dataset: Path | None
    """A file in ShareGPT's format; None: random prompts."""
    prompt_len: int
    output_len: int
    """Of random prompts."""
    vocab_size: int
    """Of random prompts; 0: the started model's own, or 32,000."""
    temperature: float
    slo_ttft_ms: float
    slo_tpot_ms: float
    """A request is good if it meets both."""
    seed: int


@dataclass(frozen=True)
class _Floors:
    rates: Rooflines
    cost: ModelCost


async def measure_serving(options: ServingOptions, *, say: Callable[[str], None]) -> Report:
    """One measurement per rate, on a server that stays up. Raises LaunchError or QuireError."""
    async with _server(options, say) as (server, config, rooflines):
        name, first_token_s = await _first_answer(server)
        worker = server.worker
        floors = _Floors(rooflines, cost_of_worker(config, worker)) if worker and rooflines else None
        results = []
        items_of = await _item_source(options, server, config.get("vocab_size", _FOREIGN_VOCAB_SIZE))
        client = HttpClient(server.url, "/v1/completions", server.api_key)
        try:
            warm_up = [Item(item.prompt, 4) for item in items_of(_WARM_UP_REQUESTS, options.seed - 1)]
            await _measure(client, Load(math.inf, warm_up, np.zeros(len(warm_up))), name, server, options)
            for number, rate in enumerate(options.rates):
                count = options.at_once if math.isinf(rate) else max(1, round(rate * options.duration_s))
                items = items_of(count, options.seed + number)
                load = Load(rate, items, departures(rate, count, options.arrivals, options.seed))
                say(f"{load.name} requests/s: {count} requests")
                before = await _prediction_errors(server, say)
                measured = await _measure(client, load, name, server, options)
                after = await _prediction_errors(server, say) if before else None
                results.append(
                    measured
                    | {"prediction_error_ms": after.since(before) if before and after else None}
                    | _floor_fields(load, floors)
                    | {"peer": _peer(server, name, load)}
                )
        finally:
            client.close()
    model: dict[str, Any] = {"name": name}
    if worker is not None:
        model |= {"device": worker.device, "dtype": worker.model.dtype, "max_rows": worker.max_rows}
        model |= {"ready_s": significant(server.ready_s or 0.0), "first_token_s": significant(first_token_s)}
    settings = {
        **asdict(options),
        "dataset": str(options.dataset or ""),
        "rates": [str(r) for r in options.rates],
    }
    del settings["api_key"]
    return Report("serve", model, settings, results, rooflines)


@asynccontextmanager
async def _server(
    options: ServingOptions, say: Callable[[str], None]
) -> AsyncIterator[tuple[RunningServer, dict[str, Any], Rooflines | None]]:
    """The server, its model's config, and the device's rates; the last two of one that is started here."""
    if options.url:
        yield RunningServer(options.url.rstrip("/"), options.api_key), {}, None
        return
    rooflines = await measure_rooflines(options.device)
    with model_directory(options.model) as (directory, load_format):
        config = read_model_json(directory, "config.json")
        length = max_model_len(config, options.prompt_len + options.output_len)
        flags = [
            *("--served-model-name", model_name(options.model), "--load-format", load_format),
            *("--device", options.device, "--max-model-len", str(length)),
        ]
        say(f"starting quire serve {' '.join([*flags, *options.server_flags])}")
        async with started_server(directory, [*flags, *options.server_flags]) as server:
            say(f"ready after {server.ready_s:.1f} s")
            yield server, config, rooflines


async def _first_answer(server: RunningServer) -> tuple[str, float]:
    """The served model's name; and, of a server started here, seconds from its start to its first token."""
    request = urllib.request.Request(
        f"{server.url}/v1/models", headers={"Authorization": f"Bearer {server.api_key}"}
    )

    def models() -> Any:
        with urllib.request.urlopen(request, timeout=30) as response:
            return orjson.loads(response.read())

    try:
        name = str((await asyncio.to_thread(models))["data"][0]["id"])
    except (OSError, LookupError, orjson.JSONDecodeError) as error:
        raise Internal(f"{server.url}/v1/models does not say what is served: {error}") from None
    client = HttpClient(server.url, "/v1/completions", server.api_key)
    exchange = await client.post(body_of(Item([10], 1), model=name, temperature=0.0, cache_salt="first"))
    client.close()
    stream = read_stream(exchange)
    if stream.error:
        raise Internal(f"the first request failed: {stream.error}")
    took_s = exchange.times_s[-1] - exchange.sent_s
    return name, (server.ready_s or 0.0) + took_s


ItemSource = Callable[[int, int], list[Item]]


async def _item_source(options: ServingOptions, server: RunningServer, vocab_size: int) -> ItemSource:
    """Makes prompts from a count and a seed."""
    if options.dataset is None:
        size = options.vocab_size or vocab_size
        return lambda count, seed: random_items(count, options.prompt_len, options.output_len, size, seed)
    client = HttpClient(server.url, "/tokenize", server.api_key)

    async def tokenize(text: str) -> list[int]:
        found: list[int] = read_json(await client.post(orjson.dumps({"prompt": text})))["tokens"]
        return found

    finite = [round(rate * options.duration_s) for rate in options.rates if not math.isinf(rate)]
    most = max([*finite, options.at_once, _WARM_UP_REQUESTS])
    try:
        items = await sampled_items(read_conversations(options.dataset), most, tokenize, options.seed)
    finally:
        client.close()
    return lambda count, seed: items[:count]


async def _measure(
    client: HttpClient, load: Load, model: str, server: RunningServer, options: ServingOptions
) -> dict[str, Any]:
    # What an earlier measurement left in the prefix cache is not found by this one, whatever its prompts were.
    salt = secrets.token_hex(8)
    bodies = [
        body_of(item, model=model, temperature=options.temperature, cache_salt=salt) for item in load.items
    ]
    cpu_before = server.cpu_s()
    exchanges, cost = await offer(client, load, bodies)
    cpu_after = server.cpu_s()
    streams = [read_stream(exchange) for exchange in exchanges]
    used_s = {name: round(value - cpu_before.get(name, 0.0), 2) for name, value in cpu_after.items()}
    return _figures(load, exchanges, streams, cost, options) | {"server_cpu_s": used_s}


async def _prediction_errors(server: RunningServer, say: Callable[[str], None]) -> PredictionErrors | None:
    """None, and why, where the server does not tell."""
    try:
        return await read_prediction_errors(server.url, server.api_key)
    except Internal as error:
        say(f"how good the predicted times to first token are is left out: {error}")
        return None


def _figures(
    load: Load,
    exchanges: Sequence[Exchange],
    streams: Sequence[Stream],
    cost: ClientCost,
    options: ServingOptions,
) -> dict[str, Any]:
    """Of the requests that got every token; the others are errors, and named."""
    errors = [
        stream.error or f"{stream.num_tokens} tokens came of {item.output_len}"
        for stream, item in zip(streams, load.items, strict=True)
        if stream.error or stream.num_tokens != item.output_len or not len(stream.times_s)
    ]
    whole = [
        (exchange, stream)
        for exchange, stream, item in zip(exchanges, streams, load.items, strict=True)
        if not stream.error and stream.num_tokens == item.output_len and len(stream.times_s)
    ]
    ttft = np.array([stream.times_s[0] - exchange.sent_s for exchange, stream in whole])
    e2e = np.array([stream.times_s[-1] - exchange.sent_s for exchange, stream in whole])
    counts = np.array([stream.num_tokens for _, stream in whole])
    tpot = (e2e - ttft) / np.maximum(counts - 1, 1)
    gaps: list[NDArray[np.float64]] = [np.diff(stream.times_s) for _, stream in whole]
    duration_s = _duration_s(exchanges, whole)
    good = int(((ttft * 1e3 <= options.slo_ttft_ms) & (tpot * 1e3 <= options.slo_tpot_ms)).sum())
    tokens = int(counts.sum())
    messages = sum(len(stream.times_s) for _, stream in whole)
    return {
        "rate": load.name,
        "requests": len(load.items),
        "completed": len(whole),
        "errors": len(errors),
        "first_errors": errors[:3],
        "duration_s": significant(duration_s),
        "requests_per_s": significant(len(whole) / duration_s),
        "prompt_tokens": sum(len(item.prompt) for item in load.items),
        "output_tokens": tokens,
        "output_tokens_per_s": significant(tokens / duration_s),
        "tokens_per_message": significant(tokens / max(1, messages)),
        "ttft_ms": spread(ttft, 1e3),
        "itl_ms": spread(np.concatenate(gaps) if gaps else (), 1e3),
        "tpot_ms": spread(tpot, 1e3),
        "e2e_ms": spread(e2e, 1e3),
        "good_requests": good,
        "goodput_per_s": significant(good / duration_s),
        "client": {
            "cpu_share": significant(cost.cpu_share),
            "loop_lag_ms": spread(cost.lag_s, 1e3),
            "send_delay_ms": spread(cost.send_delay_s, 1e3),
        },
    }


def _duration_s(exchanges: Sequence[Exchange], whole: Sequence[tuple[Exchange, Stream]]) -> float:
    """From the first request to the last token."""
    first = min(exchange.sent_s for exchange in exchanges)
    return max([float(stream.times_s[-1]) - first for _, stream in whole] or [1e-9])


def _floor_fields(load: Load, floors: _Floors | None) -> dict[str, float | None]:
    """A request alone on the device; and, of requests all at once, the whole of them."""
    if floors is None:
        return {"floor_ttft_ms": None, "floor_tpot_ms": None, "floor_s": None}
    alone = workload_floor(Workload("alone", [load.items[0]]), floors.cost, floors.rates)
    steps = max(1, load.items[0].output_len - 1)
    together = workload_floor(Workload("all", list(load.items)), floors.cost, floors.rates)
    return {
        "floor_ttft_ms": significant(1e3 * alone.prefill_s),
        "floor_tpot_ms": significant(1e3 * alone.decode_s / steps),
        "floor_s": significant(together.total_s) if math.isinf(load.rate) else None,
    }


def _peer(server: RunningServer, model: str, load: Load) -> dict[str, float] | None:
    return peer_serving(server.worker.device, model, load.name) if server.worker else None


def serving_table(report: Report) -> Iterator[dict[str, object]]:
    """What a person wants to see of it, in milliseconds; the peer's figure after a slash."""
    for result in report.results:
        peer, predicted = result["peer"] or {}, result["prediction_error_ms"]

        def beside(value: float, name: str, peer: dict[str, float] = peer) -> str:
            return f"{value:.4g} / {peer[name]:g}" if name in peer else f"{value:.4g}"

        yield {
            "req/s": result["rate"],
            "requests": result["requests"],
            "errors": result["errors"],
            "TTFT p50": beside(result["ttft_ms"]["p50"], "ttft_p50_ms"),
            "TTFT p99": beside(result["ttft_ms"]["p99"], "ttft_p99_ms"),
            "floor": result["floor_ttft_ms"],
            "predicted off by": predicted["mean"] if predicted else None,
            "p90": predicted["p90"] if predicted else None,
            "ITL p50": beside(result["itl_ms"]["p50"], "itl_p50_ms"),
            "ITL p99": beside(result["itl_ms"]["p99"], "itl_p99_ms"),
            "TPOT mean": beside(result["tpot_ms"]["mean"], "tpot_mean_ms"),
            "TPOT floor": result["floor_tpot_ms"],
            "E2E p50": result["e2e_ms"]["p50"],
            "out tok/s": beside(result["output_tokens_per_s"], "output_tokens_per_s"),
            "goodput": result["goodput_per_s"],
            "tok/msg": result["tokens_per_message"],
            "client CPU": f"{result['client']['cpu_share']:.0%}",
            "lag p99": result["client"]["loop_lag_ms"]["p99"],
        }
