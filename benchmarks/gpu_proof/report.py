"""What a proof found: a table for people, and all of it as JSON."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.bench.machine import machine, versions
from quire.bench.report import print_table


@dataclass
class Report:
    """Of one part; `claims` say what must hold, by sentence."""

    part: str
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, object]]
    """The table."""
    claims: Mapping[str, bool]
    details: Mapping[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> Path:
        """Write the JSON, and print table and claims."""
        document = {
            "part": self.part,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "settings": dict(self.settings),
            "machine": machine(),
            "versions": versions(),
            "claims": dict(self.claims),
            "table": [dict(row) for row in self.rows],
            **self.details,
        }
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"proof-{self.part}.json"
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"\n{self.part}")
        print_table(self.rows)
        for claim, holds in self.claims.items():
            print(f"{'holds' if holds else 'FAILS'}: {claim}", flush=True)
        return path

    @property
    def holds(self) -> bool:
        """Whether every claim does."""
        return all(self.claims.values())
