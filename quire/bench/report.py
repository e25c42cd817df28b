"""Reports of measurements: a JSON document, a table on the terminal, a plot beside it."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from quire.bench.floors import Rooflines
from quire.bench.machine import machine, versions

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Report:
    """Everything that a measurement found, and what it was made on. docs/bench.md describes the fields."""

    kind: str
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]
    rooflines: Rooflines | None
    machine: Mapping[str, Any] = field(default_factory=machine)
    versions: Mapping[str, str] = field(default_factory=versions)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema_version: int = SCHEMA_VERSION

    def save(self, directory: Path) -> Path:
        """Write `KIND-MODEL-TIME.json` and return its path."""
        directory.mkdir(parents=True, exist_ok=True)
        name = str(self.model.get("name", "device")).replace("/", "-")
        path = directory / f"{self.kind}-{name}-{self.time[:19].replace(':', '')}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path


def spread(values: ArrayLike, scale: float = 1.0) -> dict[str, float]:
    """Mean and percentiles of some values, each times `scale`; zeros where there are none."""
    found = np.asarray(values, dtype=np.float64) * scale
    if not found.size:
        return dict.fromkeys(("mean", "p50", "p90", "p99", "max"), 0.0)
    p50, p90, p99 = np.percentile(found, [50, 90, 99]).tolist()
    figures = {"mean": float(found.mean()), "p50": p50, "p90": p90, "p99": p99, "max": float(found.max())}
    return {name: significant(value) for name, value in figures.items()}


def significant(value: float) -> float:
    """Rounded to five digits: more than any measurement has, and few enough to read."""
    return float(f"{value:.5g}")


def print_report(report: Report, rows: Sequence[Mapping[str, object]]) -> None:
    """What it was measured on, then the rows, on stdout."""
    made_on = {**report.machine, **report.versions}
    print(", ".join(f"{name} {value}" for name, value in made_on.items()))
    if report.rooflines is not None:
        rates = report.rooflines
        print(
            f"{rates.device}: read {rates.read_bytes_per_s / 1e9:,.0f} GB/s, copy {rates.copy_bytes_per_s / 1e9:,.0f} "
            f"GB/s, {rates.matmul_dtype} products {rates.matmul_flops_per_s / 1e12:,.3g} TFLOP/s"
        )
    if report.model:
        print(", ".join(f"{name} {value}" for name, value in report.model.items()))
    print()
    print_table(rows)


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows of equal keys, as a table on stdout; numbers on the right."""
    if not rows:
        return
    columns = list(rows[0])
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[at]) for line in cells)) for at, name in enumerate(columns)]
    is_text = [isinstance(rows[0][name], str) for name in columns]
    for line in [columns, *cells]:
        padded = [
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, is_text, strict=True)
        ]
        print("  ".join(padded).rstrip())
    sys.stdout.flush()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
