"""The gateway's /metrics, its own and others'."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import exposition
from gateway.exposition import add_up, merge
from tests.gateway.conftest import RunningGateway

SCHEDULER = """# HELP vllm:num_requests_running Sequences running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="tiny"} 3.0
# HELP quire_steps_total Steps.
# TYPE quire_steps_total counter
quire_steps_total 7.0
"""


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels; fails on what Prometheus would refuse."""
    names: list[str] = []
    samples = {}
    for family in text_string_to_metric_families(text):
        names.append(family.name)
        for sample in family.samples:
            samples[(sample.name, tuple(sorted(sample.labels.items())))] = sample.value
    assert len(names) == len(set(names))
    return samples


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    """A service that serves metrics as prometheus_client does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + SCHEDULER.encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}/metrics"
    server.close()


@pytest.fixture
def gateway_settings(upstream: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """One service that is there, however late a busy machine lets it answer, and one that is not."""
    monkeypatch.setattr(exposition, "_FETCH_LIMIT_S", 60.0)
    return {"metrics_upstreams": (upstream, "http://127.0.0.1:9/metrics")}


async def test_requests_are_counted_under_vllms_names(gateway: RunningGateway) -> None:
    def sample(name: str, **labels: str) -> float:
        return after.get((name, tuple(sorted(labels.items()))), 0.0) - before.get(
            (name, tuple(sorted(labels.items()))), 0.0
        )

    before = values((await gateway.http.get("/metrics")).text)
    for stream in (True, False):
        body = {"prompt": "Hi", "stream": stream, "max_tokens": 8, "n": 2}
        assert (await gateway.http.post("/v1/completions", json=body)).status_code == 200
    await gateway.http.get("/v1/does-not-exist")
    response = await gateway.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    after = values(response.text)
    for name in (
        "vllm:time_to_first_token_seconds",
        "vllm:e2e_request_latency_seconds",
        "vllm:request_time_per_output_token_seconds",
        "vllm:request_prompt_tokens",
        "vllm:request_generation_tokens",
        "vllm:request_params_n",
        "vllm:request_params_max_tokens",
    ):
        assert sample(f"{name}_count", model_name="tiny") == 2, name
    assert sample("vllm:request_prompt_tokens_sum", model_name="tiny") == 10
    assert sample("vllm:request_generation_tokens_sum", model_name="tiny") == 12
    assert sample("quire_gateway_stream_deltas_total") == 6
    assert 1 <= sample("quire_gateway_stream_writes_total") <= 6
    counted = "quire_gateway_http_requests_total"
    assert sample(counted, route="/v1/completions", method="POST", status="200") == 2
    assert sample(counted, route="unmatched", method="GET", status="404") == 1
    assert after[("quire_gateway_open_streams", ())] == 0


async def test_metrics_of_other_services_are_there_too(gateway: RunningGateway, upstream: str) -> None:
    found = values((await gateway.http.get("/metrics")).text)
    assert found[("vllm:num_requests_running", (("model_name", "tiny"),))] == 3
    found = values((await gateway.http.get("/metrics")).text)
    assert found[("quire_gateway_metrics_upstream_up", (("url", upstream),))] == 1
    assert found[("quire_gateway_metrics_upstream_up", (("url", "http://127.0.0.1:9/metrics"),))] == 0


def test_merging_keeps_each_family_once() -> None:
    second = SCHEDULER.replace('"tiny"} 3.0', '"other"} 4.0').replace("total 7.0", "total 9.0")
    found = values(merge([SCHEDULER, second, "", "garbage without a family\n"]))
    assert found == {
        ("vllm:num_requests_running", (("model_name", "tiny"),)): 3.0,
        ("vllm:num_requests_running", (("model_name", "other"),)): 4.0,
        ("quire_steps_total", ()): 7.0,
    }


def test_equal_series_of_several_gateways_are_added() -> None:
    other = SCHEDULER.replace("7.0", "5.0") + "# TYPE quire_other gauge\nquire_other 1.0\n"
    assert values(add_up([SCHEDULER, other])) == {
        ("vllm:num_requests_running", (("model_name", "tiny"),)): 6.0,
        ("quire_steps_total", ()): 12.0,
        ("quire_other", ()): 1.0,
    }
