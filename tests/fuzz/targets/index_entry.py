"""An entry of the prefix index in Redis."""

from typing import Any

from scheduler_svc.prefix_index import Entry, PrefixIndex
from tests.fuzz.pieces import finish

_HASH = b"0" * 16


class _Client:
    """A Redis with one entry."""

    def __init__(self, entry: bytes) -> None:
        self._entry = entry

    async def hgetall(self, name: str) -> dict[bytes, bytes]:
        return {_HASH: self._entry}


def seeds() -> list[bytes]:
    """With a checksum and without."""
    return [Entry(7, (2**63, 5)).pack(), Entry(7, (1, 2), 2**64 - 1).pack()]


def run(data: bytes) -> None:
    """It is read as it was written, or passed over."""
    client: Any = _Client(data)
    found = finish(PrefixIndex(client, lambda worker, blocks: NotImplemented).load("w", 1))  # type: ignore[arg-type]
    for entry in found.values():
        assert entry.pack() == data
