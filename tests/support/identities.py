"""Identities for tests: an authority made on the spot, and what it issues."""

import datetime as dt
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from quire.cli.authority import Authority
from quire.rpc.security import Security

TOKEN = "a-token-of-tests-that-is-long-enough"
DAY = dt.timedelta(days=1)


class TestAuthority:
    """Issues certificates for as long as the test runs."""

    __test__ = False

    @cached_property
    def authority(self) -> Authority:
        return Authority.create("tests", DAY)

    def identity(
        self, name: str = "scheduler-svc", *, peer: str = "", token: str = "", valid_for: dt.timedelta = DAY
    ) -> Security:
        """Who `name` is to the others; it expects `peer`, or the name of the address's host."""
        certificate, key = self.authority.issue(name, ["localhost", "127.0.0.1"], valid_for)
        return Security(certificate, key, self.authority.pem(), token, peer)

    def files(
        self, folder: Path, name: str, *, hosts: Sequence[str] = (), valid_for: dt.timedelta = DAY
    ) -> tuple[Path, Path, Path]:
        """Certificate, key and authority of `name`, who is also at `hosts`, as files."""
        certificate, key = self.authority.issue(name, hosts, valid_for)
        folder.mkdir(exist_ok=True)
        paths = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"
        for path, content in zip(paths, (certificate, key, self.authority.pem()), strict=True):
            path.write_bytes(content)
        return paths
