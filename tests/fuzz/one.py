"""Fuzzes one target in this process, which libFuzzer ends: `python -m tests.fuzz.one TARGET [libFuzzer's flags]`.

A finding (an exception that the target lets out, a minute on one input, too much memory) ends it with a status other
than 0 and leaves the input where -artifact_prefix says.
"""

import importlib
import sys
import types
from pathlib import Path

import atheris

from tests.fuzz.json_mutator import JsonMutator

PACKAGES = ["gateway", "tokenizer_svc", "scheduler_svc", "gpu_worker", "quire"]
# On one input. Most take less than a millisecond.
TIMEOUT_S = 60
# torch alone takes half a gigabyte of it.
MEMORY_MB = 4096
MAX_BYTES = 4096


def instrument(module: types.ModuleType) -> None:
    """Count the branches of a library's functions and methods, which was imported without."""
    for holder in (module, *(item for item in vars(module).values() if isinstance(item, type))):
        for name, item in list(vars(holder).items()):
            if isinstance(item, types.FunctionType) and item.__module__ == module.__name__:
                setattr(holder, name, atheris.instrument_func(item))


def main() -> None:
    """Write the seeds into the corpus folder, which is the first argument that is no flag, and start."""
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=PACKAGES):
        target = importlib.import_module(name if "." in name else f"tests.fuzz.targets.{name}")
    for library in getattr(target, "LIBRARIES", ()):
        instrument(importlib.import_module(library))
    corpus = next((Path(item) for item in arguments if not item.startswith("-")), None)
    if corpus is not None and corpus.is_dir():
        for number, seed in enumerate(target.seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
    words = getattr(target, "WORDS", None)
    # atheris puts the function in place when it starts.
    mutator = (
        {}
        if words is None
        else {"custom_mutator": JsonMutator(words, lambda data, size: atheris.Mutate(data, size))}
    )
    flags = [f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={MAX_BYTES}"]
    atheris.Setup([name, *flags, "-print_final_stats=1", *arguments], target.run, **mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
