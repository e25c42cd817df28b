"""Make a scheduler's recorded calls again, on any machine, and compare every command byte by byte.

    python -m benchmarks.replay FILE

FILE is a dump of the flight recorder (docs/observability.md). Reading one runs code: take it only from whom you
would take a program.
"""

import argparse
import sys
from pathlib import Path

from scheduler_svc.flight_recorder import replay


def main() -> None:
    """Replay, and say what came of it; status 1 where a command is another."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    try:
        found = replay(path)
    except (ValueError, OSError) as error:
        sys.exit(f"replay: {error}")
    if found.first_difference:
        sys.exit(f"{found.num_commands} commands; the first difference is at {found.first_difference}")
    print(f"{found.num_calls} calls, {found.num_commands} commands: all byte-identical")


if __name__ == "__main__":
    main()
