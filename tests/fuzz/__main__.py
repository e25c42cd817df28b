"""Fuzzing with coverage of what reads bytes from outside: `make fuzz`, or `python -m tests.fuzz [TARGET ...]`.

Corpus and findings are kept in out/fuzz, so that a later run goes on from there. A finding is run again with
`python -m tests.fuzz.one TARGET FILE`.
"""

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.runner import TARGETS, fuzz

OUT = Path("out") / "fuzz"


def main() -> int:
    """Fuzz every target that is named, one after the other; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all of them")
    parser.add_argument("--minutes", type=float, default=3.0, help="for each of them")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no target: {', '.join(sorted(unknown))}")
    has_failed = False
    print(f"{'target':20} {'executions':>12} {'features':>9} {'minutes':>8}  findings")
    for target in options.targets or TARGETS:
        started = time.monotonic()
        outcome = fuzz(target, OUT / target, f"-max_total_time={60 * options.minutes:.0f}")
        minutes = (time.monotonic() - started) / 60
        kept = ", ".join(map(str, outcome.findings)) or ("failed" if outcome.has_failed else "none")
        print(
            f"{target:20} {outcome.executions:12,} {outcome.features:9,} {minutes:8.1f}  {kept}", flush=True
        )
        if outcome.has_failed:
            has_failed = True
            print(outcome.log, file=sys.stderr)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
