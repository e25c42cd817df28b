"""Figures of a simulation, from the recorder's columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulator.recorder import Outcome, Recorder

OUTPUT_WEIGHT = 2.0
"""Service that an output token counts for, an input token being 1 (Sheng et al., OSDI 2024, section 5)."""


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles; NaN where nothing was measured."""

    mean: float
    p50: float
    p99: float

    @classmethod
    def of(cls, values: NDArray[np.float64], weights: NDArray[np.int64] | None = None) -> "Spread":
        """Of `values` [n], each counted `weights` [n] times (once without)."""
        if len(values) == 0:
            return cls(np.nan, np.nan, np.nan)
        if weights is None:
            weights = np.ones(len(values), np.int64)
        order = np.argsort(values)
        below = np.cumsum(weights[order])
        p50, p99 = (float(values[order][np.searchsorted(below, q * below[-1])]) for q in (0.5, 0.99))
        return cls(float(np.average(values, weights=weights)), p50, p99)


@dataclass(frozen=True)
class Group:
    """The requests that a trace reports together."""

    requests: int
    ttft_s: Spread
    hit_rate: float


@dataclass(frozen=True)
class Prediction:
    """TTFT as predicted at admission against what it came to, over the requests that got a first token."""

    requests: int
    mean_error_s: float
    """Mean absolute error."""
    p90_ratio: float
    """The larger of predicted/actual and actual/predicted, 90th percentile."""


@dataclass(frozen=True)
class Report:
    """One simulation."""

    trace: str
    policy: str
    requests: int
    done: int
    refused: int
    expired: int
    retry_after_s: Spread
    simulated_s: float
    """From the first request to the last end."""
    output_tokens_per_s: float
    """Of requests that were done."""
    ttft_s: Spread
    itl_s: Spread
    """Seconds per output token after the first; the tokens of one message share its interval."""
    stall_s: Spread
    """Seconds between messages of one request, which is what a reader notices."""
    hit_rate: float
    """Prompt tokens read from the cache / prompt tokens."""
    preemptions: int
    wasted: float
    """Share of the computed positions that went into requests that were not done."""
    busy: float
    """Share of the time that workers spent in steps, mean."""
    groups: dict[str, Group]
    service: dict[str, float]
    """By tenant, while all had requests waiting: computed input tokens and weighted output tokens, over its weight."""
    jain: float
    """Jain's index of `service`: 1 if all got the same, 1/n if one got everything."""
    prediction: Prediction | None
    wall_s: float
    """Real seconds that the simulation took."""


def summarise(
    recorder: Recorder,
    *,
    trace: str,
    policy: str,
    weights: Mapping[str, float],
    busy_s: Sequence[float],
    wall_s: float,
) -> Report:
    """The report of a simulation that has ended; `weights` by tenant, `busy_s` by worker."""
    begun, done = recorder.outcome != Outcome.NOT_SENT, recorder.outcome == Outcome.DONE
    simulated_s = float(np.nanmax(recorder.ended_at) - np.nanmin(recorder.sent_at))
    intervals_s, counts = _intervals(recorder)
    service = _service(recorder) / [weights.get(name, 1.0) for name in recorder.tenants]
    computed = recorder.computed_tokens
    return Report(
        trace=trace,
        policy=policy,
        requests=int(begun.sum()),
        done=int(done.sum()),
        refused=int((recorder.outcome == Outcome.REFUSED).sum()),
        expired=int((recorder.outcome == Outcome.EXPIRED).sum()),
        retry_after_s=Spread.of(recorder.retry_after_s[~np.isnan(recorder.retry_after_s)]),
        simulated_s=simulated_s,
        output_tokens_per_s=float(recorder.output_tokens[done].sum()) / simulated_s,
        ttft_s=Spread.of(_ttft(recorder, begun)),
        itl_s=Spread.of(intervals_s / counts, counts),
        stall_s=Spread.of(intervals_s),
        hit_rate=_hit_rate(recorder, done),
        preemptions=int(recorder.preemptions.sum()),
        wasted=float(computed[~done].sum()) / max(int(computed.sum()), 1),
        busy=float(np.mean(busy_s)) / simulated_s,
        groups={
            name: _group(recorder, recorder.group == number) for number, name in enumerate(recorder.groups)
        },
        service=dict(zip(recorder.tenants, service.tolist(), strict=True)),
        jain=jain_index(service),
        prediction=_prediction(recorder),
        wall_s=wall_s,
    )


def jain_index(service: NDArray[np.float64]) -> float:
    """(sum x)² / (n · sum x²) of `service` [n] (Jain, Chiu and Hawe 1984); 1 where there is none."""
    squares = float((service**2).sum())
    return float(service.sum()) ** 2 / (len(service) * squares) if squares else 1.0


def _group(recorder: Recorder, members: NDArray[np.bool_]) -> Group:
    begun, done = recorder.outcome != Outcome.NOT_SENT, recorder.outcome == Outcome.DONE
    return Group(
        int((members & begun).sum()),
        Spread.of(_ttft(recorder, members)),
        _hit_rate(recorder, members & done),
    )


def _hit_rate(recorder: Recorder, which: NDArray[np.bool_]) -> float:
    return float(recorder.cached_tokens[which].sum()) / max(int(recorder.prompt_tokens[which].sum()), 1)


def _ttft(recorder: Recorder, which: NDArray[np.bool_]) -> NDArray[np.float64]:
    ttft_s: NDArray[np.float64] = (recorder.first_token_at - recorder.sent_at)[which]
    return ttft_s[~np.isnan(ttft_s)]


def _intervals(recorder: Recorder) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Seconds between messages, and the tokens that each brought; [m]."""
    intervals_s = np.concatenate([np.zeros(0), *(each.intervals_s for each in recorder.deliveries)])
    counts = np.concatenate([np.zeros(0, np.int64), *(each.counts for each in recorder.deliveries)])
    known = ~np.isnan(intervals_s)
    return intervals_s[known], counts[known]


def _service(recorder: Recorder) -> NDArray[np.float64]:
    """Tokens that each tenant got while all of them had requests waiting, [tenants].

    The input counts with the first token. The first tenant to get the last of its first tokens ends the count.
    """
    numbers = range(len(recorder.tenants))
    owned = [recorder.tenant == number for number in numbers]
    begin = max(float(np.nanmin(recorder.sent_at[own])) for own in owned)
    end = min(float(np.nanmax(recorder.first_token_at[own], initial=begin)) for own in owned)
    inside = (recorder.first_token_at >= begin) & (recorder.first_token_at <= end)
    computed = np.where(inside, recorder.prompt_tokens - recorder.cached_tokens, 0)
    service: NDArray[np.float64] = np.zeros(len(numbers))
    service += np.bincount(recorder.tenant, computed.astype(np.float64), minlength=len(numbers))
    for delivery in recorder.deliveries:
        if begin <= delivery.at <= end:
            tenants = recorder.tenant[delivery.requests]
            counts = OUTPUT_WEIGHT * delivery.counts
            service += np.bincount(tenants, counts, minlength=len(numbers))
    return service


def _prediction(recorder: Recorder) -> Prediction | None:
    actual_s = recorder.first_token_at - recorder.sent_at
    known = ~np.isnan(actual_s) & ~np.isnan(recorder.predicted_ttft_s)
    if not bool(known.any()):
        return None
    actual_s, predicted_s = actual_s[known], recorder.predicted_ttft_s[known]
    # Below a millisecond nobody cares, and ratios explode.
    ratio = np.maximum(predicted_s, 0.001) / np.maximum(actual_s, 0.001)
    return Prediction(
        int(known.sum()),
        float(np.abs(predicted_s - actual_s).mean()),
        float(np.quantile(np.maximum(ratio, 1.0 / ratio), 0.9)),
    )
