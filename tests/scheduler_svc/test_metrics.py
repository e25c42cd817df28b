"""Metrics are right whether observed one at a time or a step at a time."""

import re

import numpy as np
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from quire.v1 import types_pb2
from scheduler_svc.batch_histogram import BatchHistogram
from tests.scheduler_svc.conftest import (
    Sockets,
    generate,
    running_pair,
    running_scheduler,
    running_worker,
    token_request,
)

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


async def test_the_cache_s_size_is_told_once_however_often_it_changes(sockets: Sockets) -> None:
    from quire.metrics import REGISTRY

    def told() -> list[str]:
        found = generate_latest(REGISTRY).decode()
        return re.findall(r'^vllm:cache_config_info\{.*num_gpu_blocks="(\d+)".*\} 1\.0$', found, re.M)

    async with running_scheduler(sockets("scheduler"), sockets("worker")) as service:
        for num_blocks in (64, 128):
            async with running_worker(sockets("worker"), num_blocks=num_blocks):
                await service.until_state(types_pb2.SERVICE_STATE_READY)
                assert told() == [str(num_blocks)]
            await service.until_state(types_pb2.SERVICE_STATE_STARTING)


async def test_what_another_model_does_is_counted_under_its_name(sockets: Sockets) -> None:
    from quire.metrics import REGISTRY

    def generated(model: str) -> float:
        labels = {"model_name": model, "engine": "0"}
        return REGISTRY.get_sample_value("vllm:generation_tokens_total", labels) or 0.0

    async with running_scheduler(sockets("scheduler"), sockets("worker")) as service:
        for model, num_tokens in (("one", 5), ("other", 7)):
            async with running_worker(sockets("worker"), model_name=model):
                await service.until_state(types_pb2.SERVICE_STATE_READY)
                await generate(service, token_request([1, 2, 3], num_tokens))
                await service.until_free()
            await service.until_state(types_pb2.SERVICE_STATE_STARTING)
    assert (generated("one"), generated("other")) == (5, 7)
