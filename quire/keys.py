"""API keys: minted with 256 random bits, kept only as SHA-256 hashes, compared in constant time.

A key this random cannot be guessed from its hash, so the slow hashes that passwords need would buy nothing.
"""

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from quire.errors import QuireError
from quire.files import OWNERS_ALONE, replace_files, write_beside

KEY_PREFIX = "sk-quire-"
FIRST_NAME = "default"
ANY_PRIORITY = -(2**31)
"""Allows every `priority`."""
_SHARES = ("weight", "kv_floor", "kv_ceiling")
_MOST_WEIGHT = 1e6


class KeysFileError(QuireError):
    """The keys file cannot be read or written."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of a key."""

    name: str
    """Whose it is: the tenant of its requests."""
    hash: str
    """SHA-256 of the key, 64 hexadecimal digits."""
    created: int
    """Unix time in seconds."""
    weight: float = 1.0
    """The tenant's share of the work relative to other tenants', over 0."""
    kv_floor: float = 0.0
    """Share of each replica's KV blocks that other tenants never take from it, 0 to 1."""
    kv_ceiling: float = 1.0
    """Share of each replica's KV blocks that it may hold at most; from its floor to 1."""
    min_priority: int = 0
    """The lowest `priority` that its requests may have; lower runs before everybody else's."""

    def check_policy(self) -> None:
        """Raises ValueError for shares that are none."""
        if not 0 < self.weight <= _MOST_WEIGHT:
            raise ValueError(f"the weight of {self.name!r} is over 0 and at most {_MOST_WEIGHT:g}")
        if not 0 <= self.kv_floor <= self.kv_ceiling <= 1 or self.kv_ceiling == 0:
            raise ValueError(
                f"floor and ceiling of {self.name!r} are from 0 to 1, the floor not above the ceiling"
            )
        if not ANY_PRIORITY <= self.min_priority < -ANY_PRIORITY:
            raise ValueError(f"the lowest priority of {self.name!r} is no 32-bit integer")


def default_keys_file() -> Path:
    """`$QUIRE_HOME/keys.json`, else `quire/keys.json` where this system keeps a user's configuration."""
    home = os.environ.get("QUIRE_HOME")
    if home:
        return Path(home) / "keys.json"
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "quire" / "keys.json"


def mint() -> str:
    """A new key, for the caller to show once."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def record(key: str, name: str) -> KeyRecord:
    """What to keep of `key`."""
    return KeyRecord(name=name, hash=_digest(key), created=int(time.time()))


def operators_record(key: str) -> KeyRecord:
    """What to keep of the operator's own key, which may have any priority."""
    return replace(record(key, FIRST_NAME), min_priority=ANY_PRIORITY)


def verify(records: Iterable[KeyRecord], key: str) -> KeyRecord | None:
    """The record of `key`, or None. Compares with every record, so the time taken tells nothing."""
    digest = _digest(key)
    found = None
    for candidate in records:
        if hmac.compare_digest(candidate.hash, digest):
            found = candidate
    return found


def load(path: Path) -> tuple[KeyRecord, ...]:
    """The records in `path`; none if there is no such file. Raises KeysFileError if it cannot be read."""
    try:
        return _parse(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise KeysFileError(f"cannot read the API keys in {path}: {error!r}") from None


def save(path: Path, records: Sequence[KeyRecord]) -> None:
    """Replace `path` in one step; only its owner can read it. Raises KeysFileError."""
    try:
        _make_folder(path)
        replace_files({path: (_serialise(records), OWNERS_ALONE)})
    except OSError as error:
        raise KeysFileError(f"cannot write the API keys to {path}: {error.strerror}") from None


def mint_first(path: Path) -> str:
    """Mint a key if `path` holds none and keep its hash; empty if there is one already.

    Of several processes that start together, one mints. Raises KeysFileError.
    """
    if load(path):
        return ""
    key = mint()
    if path.exists():
        save(path, [operators_record(key)])
        return key
    try:
        _make_folder(path)
        written = write_beside(path, _serialise([operators_record(key)]))
        try:
            # Unlike a rename, a link fails where another process was first.
            os.link(written, path)
        except FileExistsError:
            return ""
        finally:
            os.unlink(written)
    except OSError as error:
        raise KeysFileError(f"cannot write the API keys to {path}: {error.strerror}") from None
    return key


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _parse(data: bytes) -> tuple[KeyRecord, ...]:
    records = tuple(
        KeyRecord(
            name=str(item["name"]),
            hash=str(item["hash"]).lower(),
            created=int(item["created"]),
            **{share: float(item[share]) for share in _SHARES if share in item},
            min_priority=int(item.get("min_priority", 0)),
        )
        for item in json.loads(data)["keys"]
    )
    for item in records:
        item.check_policy()
        item.name.encode()  # it goes through protobuf with each request
        if len(bytes.fromhex(item.hash)) != hashlib.sha256().digest_size:
            raise ValueError(f"the hash of {item.name!r} is not a SHA-256")
    return records


def _make_folder(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _serialise(records: Sequence[KeyRecord]) -> bytes:
    return json.dumps({"keys": [asdict(item) for item in records]}, indent=2).encode() + b"\n"
