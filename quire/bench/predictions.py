"""By how much the scheduler's predictions of the time to first token were off, read off the server's metrics."""

import asyncio
import http.client
import math
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from quire.bench.report import significant
from quire.errors import Internal

_NAME = "quire_scheduler_ttft_prediction_error_seconds"
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class PredictionErrors:
    """The histogram of absolute errors in seconds that all schedulers have counted so far."""

    at_most: Mapping[float, float]
    """Requests whose error was at most so many seconds."""
    sum_s: float

    @classmethod
    def parse(cls, page: str) -> "PredictionErrors":
        """From a page in Prometheus' text format. Raises Internal if the histogram is not on it."""
        at_most: dict[float, float] = {}
        sum_s = 0.0
        try:
            families = [each for each in text_string_to_metric_families(page) if each.name == _NAME]
        except ValueError as error:
            raise Internal(f"it is no page of metrics: {error}") from None
        for sample in (sample for family in families for sample in family.samples):
            if sample.name == f"{_NAME}_bucket":
                bound = float(sample.labels["le"])
                at_most[bound] = at_most.get(bound, 0.0) + sample.value
            elif sample.name == f"{_NAME}_sum":
                sum_s += sample.value
        if not at_most:
            raise Internal(f"{_NAME} is not among its metrics")
        return cls(dict(sorted(at_most.items())), sum_s)

    def since(self, before: "PredictionErrors") -> dict[str, float]:
        """Requests that a prediction was made for since `before`, and their errors in milliseconds."""
        counts = {bound: count - before.at_most.get(bound, 0.0) for bound, count in self.at_most.items()}
        requests = max(counts.values())
        mean_s = (self.sum_s - before.sum_s) / requests if requests else 0.0
        quantiles = {f"p{percent}": _quantile(counts, percent / 100) for percent in (50, 90, 99)}
        return {
            "requests": int(requests),
            **{name: significant(1e3 * value) for name, value in {"mean": mean_s, **quantiles}.items()},
        }


def _quantile(counts: Mapping[float, float], share: float) -> float:
    """Interpolated within its bucket, as Prometheus does; beyond the last bound, that bound."""
    rank = share * max(counts.values())
    low, below = 0.0, 0.0
    for bound, count in counts.items():
        if count >= rank and count > below:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        if not math.isinf(bound):
            low, below = bound, count
    return 0.0


async def read_prediction_errors(url: str, api_key: str) -> PredictionErrors:
    """What the server's /metrics says now. Raises Internal if it does not say it."""
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {api_key}"})

    def fetch() -> str:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            page: bytes = response.read()
            return page.decode(errors="replace")

    try:
        return PredictionErrors.parse(await asyncio.to_thread(fetch))
    except (OSError, http.client.HTTPException) as error:
        raise Internal(f"{url}/metrics cannot be read: {error}") from None
