"""Writes deploy/locks: what the images install, each file of it by its SHA-256.

    python tools/lock_images.py          # `make locks` runs it where uv is installed

`control.txt` is everything of the control plane, `worker.txt` what the worker has besides, without torch, Triton and
what they bring of CUDA: their wheels differ by machine and come from other indexes, so they have versions only, like
everything in constraints.txt. Both are for Python 3.11 on any processor.
"""

import re
import subprocess
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LOCKS = REPOSITORY / "deploy" / "locks"
BY_MACHINE = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")
_HEAD = "# Made by `make locks` from pyproject.toml and constraints.txt.\n"

Entries = dict[str, str]
"""Each package's lines, by its name."""


def requirements(*extras: str) -> str:
    """What pyproject.toml asks for: without extras, and with each of these besides."""
    found = ""
    for extra in ((), *((extra,) for extra in extras)):
        command = ["python3", "requirements.py", *extra]
        with tempfile.TemporaryDirectory() as folder:
            for name in ("pyproject.toml", "deploy/requirements.py"):
                (Path(folder) / Path(name).name).write_text((REPOSITORY / name).read_text())
            found += subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    return found


def resolve(wanted: str) -> Entries:
    """Every package that `wanted` needs, at the versions of constraints.txt."""
    flags = ("--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url", "--universal")
    command = [
        "uv",
        "pip",
        "compile",
        "-",
        "--constraint",
        "constraints.txt",
        "--python-version",
        "3.11",
        *flags,
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, check=True, input=wanted, stdout=subprocess.PIPE, text=True
    )
    return entries(done.stdout)


def entries(text: str) -> Entries:
    """Of a requirements file with hashes."""
    found: Entries = {}
    for entry in re.split(r"^(?=\w)", text, flags=re.MULTILINE):
        if name := re.match(r"([\w.-]+)==", entry):
            found[name[1].lower()] = entry
    return found


def main() -> None:
    control = resolve(requirements())
    worker = resolve(requirements("worker"))
    more = {
        name: entry for name, entry in worker.items() if name not in control and not BY_MACHINE.match(name)
    }
    LOCKS.mkdir(exist_ok=True)
    for name, found in (("control", control), ("worker", more)):
        (LOCKS / f"{name}.txt").write_text(_HEAD + "".join(found.values()))


if __name__ == "__main__":
    main()
