"""What every `quire bench` command does with its report."""

import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import typer
import uvloop

from quire.bench.plot import plot
from quire.bench.report import Report, print_report
from quire.errors import QuireError
from quire.launcher import LaunchError

RESULTS = Path("bench-results")

T = TypeVar("T")


def make_report(
    measuring: Coroutine[Any, Any, Report],
    table: Callable[[Report], Iterable[Mapping[str, object]]],
    output: Path,
) -> None:
    """Measure, print, save and draw."""
    report = failing_clearly(lambda: uvloop.run(measuring))
    print_report(report, list(table(report)))
    saved = report.save(output)
    say(f"saved {saved}")
    drawn = plot(saved)
    say(f"drew {drawn}" if drawn else "no plot: that needs matplotlib (pip install 'quire[bench]')")


def failing_clearly(work: Callable[[], T]) -> T:
    """Run it; an error that has a message for people is that message and exit code 1."""
    try:
        return work()
    except (QuireError, LaunchError) as error:
        say(f"quire bench: {error}")
        raise typer.Exit(1) from None


def say(line: str) -> None:
    """Progress and remarks, apart from the figures on stdout."""
    print(line, file=sys.stderr, flush=True)
