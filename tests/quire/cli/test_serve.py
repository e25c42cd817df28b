"""What `quire serve` decides before anything has started."""

import socket
from itertools import islice

import pytest

from quire.cli.serve import _free_addresses


class Probe:
    """A socket that is bound to the next of some ports."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports

    def __call__(self) -> "Probe":
        """Another one."""
        return self

    def __enter__(self) -> "Probe":
        """Open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closed: its port is free again."""

    def bind(self, address: tuple[str, int]) -> None:
        """To any port of this machine."""
        assert address == ("127.0.0.1", 0)

    def getsockname(self) -> tuple[str, int]:
        """Where."""
        return "127.0.0.1", self._ports.pop(0)


def test_no_address_is_given_to_two_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", Probe([5000, 5000, 8000, 5001, 5000, 5002]))
    addresses = list(islice(_free_addresses(8000), 3))
    assert addresses == ["127.0.0.1:5000", "127.0.0.1:5001", "127.0.0.1:5002"]
