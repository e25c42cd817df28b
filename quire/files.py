"""Files that are there whole or as they were before, whether the disk is full or the process ends."""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

OWNERS_ALONE = 0o600
EVERYBODYS = 0o644


def write_beside(path: Path, content: bytes, mode: int = OWNERS_ALONE) -> str:
    """Write a file of another name next to `path`, and return its name.

    Raises OSError, and then nothing of it is left.
    """
    descriptor, written = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        os.unlink(written)
        raise
    return written


def replace_files(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """Put content and mode into each file; all are written before the first takes its place.

    Raises OSError; if there is no room, every file is as it was.
    """
    written: dict[Path, str] = {}
    try:
        for path, (content, mode) in files.items():
            written[path] = write_beside(path, content, mode)
        for path in files:
            os.replace(written.pop(path), path)
    finally:
        for left in written.values():
            with contextlib.suppress(OSError):
                os.unlink(left)
