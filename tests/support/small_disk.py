"""A file system of a few megabytes, to be filled to its last byte and emptied again."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$0" && echo mounted && exec sleep infinity'


class SmallDisk:
    """Seen by this process in `folder`; by one that is started with the words `inside` before its own in `mount`."""

    def __init__(self, holder: int, mount: Path) -> None:
        self.mount = mount
        self.folder = Path(f"/proc/{holder}/root{mount}")
        self.inside = ("nsenter", "--preserve-credentials", "--user", "--mount", "--target", str(holder))
        self._filler = self.folder / "filler"

    def fill(self, leave: int = 0) -> None:
        """Leave room for so many bytes more."""
        with self._filler.open("wb", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(4096))
            filler.truncate(max(0, filler.tell() - leave))

    def empty(self) -> None:
        """Make room again."""
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[SmallDisk]:
    """One for the length of the block; skips the test where users may not have mounts of their own."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    holder = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, str(folder), str(num_bytes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip("mounts in a namespace of one's own are not allowed here")
        yield SmallDisk(holder.pid, folder)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
