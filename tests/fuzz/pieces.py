"""What targets share: bytes taken apart, and coroutines that wait for nothing run to their end."""

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Pieces:
    """Takes a target's input apart, from the front; zeros and nothing after its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        """The next byte."""
        return int.from_bytes(self.take(1), "little")

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or as many as are left."""
        self._at += size
        return self._data[self._at - size : self._at]

    def text(self, size: int) -> str:
        """The next `size` bytes as UTF-8; what is none becomes U+FFFD."""
        return self.take(size).decode(errors="replace")

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(max(0, len(self._data) - self._at))


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never has to wait. Raises what it raises."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    coroutine.close()
    raise AssertionError("the coroutine waits for something")
