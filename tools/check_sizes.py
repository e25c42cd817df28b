"""Fails on a file over 600 lines or a function over 60, and names files over 400: sizes are a budget."""

import ast
import sys
from pathlib import Path

PACKAGES = (
    "gateway",
    "tokenizer_svc",
    "scheduler_svc",
    "gpu_worker",
    "kernels",
    "quire",
    "benchmarks",
    "tools",
)
GENERATED = Path("quire/v1")
FILE_WARNING, FILE_LIMIT, FUNCTION_LIMIT = 400, 600, 60
# What services share must not become the place where everything goes. These parts of the package start services, or
# ask them; none of the services imports them.
SHARED_LIMIT = 2000
UNSHARED = ("cli", "bench", "offline", "launcher.py", "local.py")


def count_failures(path: Path, text: str) -> int:
    """Print what is too long in one file; how much of it is over a limit."""
    failures = 0
    lines = text.count("\n")
    if lines > FILE_WARNING:
        failures += lines > FILE_LIMIT
        print(f"{path}: {lines} lines ({FILE_WARNING} is the aim, {FILE_LIMIT} the limit)")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LIMIT:
                failures += 1
                print(f"{path}:{node.lineno}: {node.name} has {length} lines ({FUNCTION_LIMIT} is the limit)")
    return failures


def main() -> int:
    """Check every file; 1 if anything passes its limit."""
    files = sorted(file for package in PACKAGES for file in Path(package).rglob("*.py"))
    texts = {path: path.read_text() for path in files if GENERATED not in path.parents}
    failures = sum(count_failures(path, text) for path, text in texts.items())
    shared = sum(
        text.count("\n")
        for path, text in texts.items()
        if path.parts[0] == "quire" and path.parts[1] not in UNSHARED
    )
    if shared > SHARED_LIMIT:
        failures += 1
        print(f"quire/ has {shared} lines without {', '.join(UNSHARED)} ({SHARED_LIMIT} is the limit)")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
