"""Errors of predictions are those counted in the meantime, of all schedulers together."""

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from quire.bench.predictions import PredictionErrors, read_prediction_errors
from quire.errors import Internal


class Schedulers:
    """Two, whose metrics are on one page."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._histogram = Histogram(
            "quire_scheduler_ttft_prediction_error_seconds",
            "As the scheduler's.",
            ["instance"],
            buckets=(0.01, 0.02, 0.1),
            registry=self._registry,
        )

    def observe(self, instance: str, *errors_s: float) -> None:
        counted = self._histogram.labels(instance)
        for error_s in errors_s:
            counted.observe(error_s)

    def read(self) -> PredictionErrors:
        return PredictionErrors.parse(generate_latest(self._registry).decode())


def test_only_what_was_counted_between_the_readings_counts() -> None:
    schedulers = Schedulers()
    schedulers.observe("a", 5.0, 5.0)
    before = schedulers.read()
    schedulers.observe("a", 0.005, 0.015)
    schedulers.observe("b", 0.015, 0.045)
    figures = schedulers.read().since(before)
    assert (figures["requests"], figures["mean"]) == (4, pytest.approx(20.0))
    # The second of four is halfway through the two that lie between 10 and 20 ms.
    assert figures["p50"] == pytest.approx(15.0)
    # 3.6 of 4: six tenths of the way through the one between 20 and 100.
    assert figures["p90"] == pytest.approx(68.0)


def test_no_prediction_in_the_meantime_is_zeros() -> None:
    schedulers = Schedulers()
    schedulers.observe("a", 0.015)
    figures = schedulers.read().since(schedulers.read())
    assert figures == {"requests": 0, "mean": 0.0, "p50": 0.0, "p90": 0.0, "p99": 0.0}


def test_an_error_beyond_the_last_bound_counts_as_that_bound() -> None:
    schedulers = Schedulers()
    schedulers.observe("b")
    before = schedulers.read()
    schedulers.observe("b", 7.0)
    assert schedulers.read().since(before)["p50"] == pytest.approx(100.0)


def test_a_page_without_them_is_said_so() -> None:
    with pytest.raises(Internal, match="not among its metrics"):
        PredictionErrors.parse("vllm:num_requests_running 3.0\n")
    with pytest.raises(Internal, match="no page of metrics"):
        PredictionErrors.parse("<html>404 not found</html>\n")


async def test_a_server_that_is_not_there_is_said_so() -> None:
    with pytest.raises(Internal, match="cannot be read"):
        await read_prediction_errors("http://127.0.0.1:9", "")
