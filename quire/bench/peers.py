"""What another engine does on the same workloads and the same card (peers.json)."""

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class PeerFigure:
    """One figure of the other engine, and ours in proportion: above 1 we are faster."""

    engine: str
    unit: str
    value: float
    ratio: float


@functools.cache
def _peers() -> dict[str, Any]:
    text = resources.files("quire.bench").joinpath("peers.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def peer_throughput(device: str, model: str, workload: str, ours: dict[str, float]) -> PeerFigure | None:
    """The peer's figure of an offline workload beside `ours`, by unit; None where none was measured."""
    found = _figures("throughput", device, model).get(workload)
    if found is None:
        return None
    unit, value = found["unit"], found["value"]
    ratio = value / ours[unit] if unit == "seconds" else ours[unit] / value
    return PeerFigure(_peers()["engine"], unit, value, round(ratio, 3))


def peer_serving(device: str, model: str, rate: str) -> dict[str, float] | None:
    """The peer's figures at a request rate (`inf`: all at once); None where none were measured."""
    found: dict[str, float] | None = _figures("serve", device, model).get(rate)
    return found


def _figures(kind: str, device: str, model: str) -> dict[str, Any]:
    figures: dict[str, Any] = _peers()[kind].get(model, {}) if device == _peers()["device"] else {}
    return figures
