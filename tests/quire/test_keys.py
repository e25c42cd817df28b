"""API keys: their strength, their file, and how they are compared."""

import hmac
import stat
from pathlib import Path

import pytest

from quire import keys
from quire.keys import KeysFileError


def test_minted_keys_are_long_random_and_recognisable() -> None:
    minted = {keys.mint() for _ in range(100)}
    assert len(minted) == 100
    assert all(key.startswith("sk-quire-") and len(key) >= len("sk-quire-") + 43 for key in minted)


def test_only_the_hash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    key = keys.mint_first(path)
    assert key not in path.read_text()
    assert key.removeprefix(keys.KEY_PREFIX) not in path.read_text()
    found = keys.verify(keys.load(path), key)
    assert found is not None
    assert (found.name, found.min_priority) == ("default", keys.ANY_PRIORITY)


def test_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys.mint_first(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys.save(path, keys.load(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]


def test_first_key_is_minted_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert keys.mint_first(path)
    before = path.read_bytes()
    assert keys.mint_first(path) == ""
    assert path.read_bytes() == before


def test_an_empty_list_of_keys_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys.save(path, [])
    key = keys.mint_first(path)
    assert keys.verify(keys.load(path), key)


def test_a_key_is_compared_with_every_record(monkeypatch: pytest.MonkeyPatch) -> None:
    minted = [keys.mint() for _ in range(4)]
    records = [keys.record(key, f"tenant-{index}") for index, key in enumerate(minted)]
    compared = 0
    compare = hmac.compare_digest

    def counting(left: str, right: str) -> bool:
        nonlocal compared
        compared += 1
        return compare(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    found = keys.verify(records, minted[0])
    assert found is not None
    assert found.name == "tenant-0"
    assert compared == 4
    assert keys.verify(records, minted[0] + "x") is None
    assert keys.verify(records, "") is None
    assert keys.verify(records, "\ud800") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"keys": [{}]}',
        '{"keys": [{"name": "a", "hash": "00", "created": 1}]}',
        '{"keys": [{"name": "a", "hash": "%s", "created": Infinity}]}' % ("0" * 64),
        '{"keys": [{"name": "\\ud800", "hash": "%s", "created": 1}]}' % ("0" * 64),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(KeysFileError, match=r"keys\.json"):
        keys.load(path)
    with pytest.raises(KeysFileError):
        keys.mint_first(path)
    assert path.read_text() == text


def test_file_goes_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QUIRE_HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert keys.default_keys_file() == tmp_path / "config" / "quire" / "keys.json"
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path / "home"))
    assert keys.default_keys_file() == tmp_path / "home" / "keys.json"
