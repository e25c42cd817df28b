"""Runs targets, each in a process of its own, and reads from their logs what came of it."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TARGETS = tuple(sorted(path.stem for path in (Path(__file__).parent / "targets").glob("*.py")))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one target."""

    executions: int
    features: int
    """Of libFuzzer: edges, and how often they were taken."""
    findings: list[Path]
    """Inputs, kept."""
    log: str
    has_failed: bool


def fuzz(target: str, folder: Path, *flags: str) -> Outcome:
    """Fuzz one target; its corpus and its findings are kept in `folder`."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    before = set(_findings(folder))
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.one",
        target,
        str(corpus),
        f"-artifact_prefix={folder}/",
        *flags,
    ]
    # Paths through sets and dicts would differ from run to run.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    log = done.stdout + done.stderr
    return Outcome(
        executions=_last(r"stat::number_of_executed_units: (\d+)", log),
        features=_last(r" ft: (\d+)", log),
        findings=[path for path in _findings(folder) if path not in before],
        log="\n".join(line for line in log.splitlines() if not line.startswith("INFO: Instrumenting")),
        has_failed=done.returncode != 0,
    )


def _findings(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name.partition("-")[0] in ("crash", "timeout", "oom")
    ]


def _last(pattern: str, log: str) -> int:
    found = re.findall(pattern, log)
    return int(found[-1]) if found else 0
