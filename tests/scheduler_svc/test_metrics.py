"""Metrics are right whether observed one at a time or a step at a time."""

import numpy as np
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from scheduler_svc.batch_histogram import BatchHistogram
from tests.scheduler_svc.conftest import Sockets, generate, running_pair, token_request

_BUCKETS = (0.001, 0.01, 1.0)


def test_a_batch_histogram_is_exposed_like_prometheus_own() -> None:
    values = [0.0005, 0.001, 0.005, 0.5, 7.0]
    mine, theirs = CollectorRegistry(), CollectorRegistry()
    batch = BatchHistogram("x_seconds", "help", ["model"], _BUCKETS, mine)
    batch.label_values = ["m"]
    batch.observe(np.asarray(values), np.asarray([1, 2, 1, 1, 1]))
    single = Histogram("x_seconds", "help", ["model"], buckets=_BUCKETS, registry=theirs)
    for value in (*values, 0.001):
        single.labels("m").observe(value)

    def lines(registry: CollectorRegistry) -> list[str]:
        return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]

    assert lines(mine) == lines(theirs)


async def test_a_request_is_counted_under_vllm_s_names(sockets: Sockets) -> None:
    from quire.metrics import REGISTRY

    def value(name: str, **labels: str) -> float:
        labels = {"model_name": "instant", "engine": "0", **labels}
        return REGISTRY.get_sample_value(name, labels) or 0.0

    def read() -> list[float]:
        return [
            value("vllm:prompt_tokens_total"),
            value("vllm:generation_tokens_total"),
            value("vllm:prefix_cache_queries_total"),
            value("vllm:prefix_cache_hits_total"),
            value("vllm:request_success_total", finished_reason="length"),
            value("vllm:inter_token_latency_seconds_count"),
            value("vllm:request_queue_time_seconds_count"),
        ]

    async with running_pair(sockets) as (service, _):
        before = read()
        for _ in range(2):
            await generate(service, token_request(list(range(40)), 10))
        await service.until_free()
        gained = [after - start for after, start in zip(read(), before, strict=True)]
    assert gained[:5] == [80, 20, 80, 32, 2]
    # The first token of a sequence has no interval before it.
    assert gained[5] == 18
    assert gained[6] == 2
    assert value("vllm:num_requests_running") == 0
