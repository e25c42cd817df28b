"""Prints what pyproject.toml lists for an image, one requirement a line: `requirements.py`, or `... worker`."""

import sys
import tomllib
from pathlib import Path


def requirements(project: dict[str, object], extra: str | None) -> list[str]:
    """The package's dependencies, or those of one extra; an extra that names another one has its, too."""
    if extra is None:
        return list(project["dependencies"])  # type: ignore[call-overload]
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    found = []
    for item in extras[extra]:
        if item.startswith("quire["):
            found += requirements(project, item.removeprefix("quire[").removesuffix("]"))
        else:
            found.append(item)
    return found


if __name__ == "__main__":
    pyproject = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text())
    print(*requirements(pyproject["project"], *(sys.argv[1:] or [None])), sep="\n")
