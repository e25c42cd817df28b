"""`quire keys` as a command: what it keeps, prints and refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from quire import keys
from quire.cli import app


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments, "--keys-file", str(path)])


def test_a_key_is_created_with_its_shares_changed_and_revoked(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    created = run(path, "create", "team", "--weight", "2", "--kv-floor", "0.1", "--kv-ceiling", "0.5")
    key = created.stdout.strip()
    assert created.exit_code == 0
    found = keys.verify(keys.load(path), key)
    assert found is not None
    assert (found.name, found.weight, found.kv_floor, found.kv_ceiling) == ("team", 2.0, 0.1, 0.5)

    assert found.min_priority == 0
    assert run(path, "update", "team", "--weight", "3", "--min-priority", "-5").exit_code == 0
    found = keys.verify(keys.load(path), key)
    assert found is not None
    assert (found.weight, found.kv_floor, found.min_priority) == (3.0, 0.1, -5)
    assert "team" in run(path, "list").stdout

    assert run(path, "revoke", "team").exit_code == 0
    assert keys.verify(keys.load(path), key) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "a"), "already"),
        (("update", "b"), "no key of b"),
        (("revoke", "b"), "no key of b"),
        (("update", "a", "--weight", "0"), "weight"),
        (("update", "a", "--kv-floor", "0.6", "--kv-ceiling", "0.5"), "floor"),
        (("update", "a", "--kv-ceiling", "nan"), "ceiling"),
        (("update", "a", "--min-priority", str(2**31)), "priority"),
        (("create", "b", "--kv-floor", "0.5"), "together"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line_and_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    path = tmp_path / "keys.json"
    run(path, "create", "a", "--kv-floor", "0.55")
    before = path.read_bytes()
    answer = run(path, *arguments)
    assert answer.exit_code == 1
    assert words in answer.stderr
    assert path.read_bytes() == before


def test_keys_files_of_before_shares_are_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    digest = keys.record("sk-old", "old").hash
    path.write_text(f'{{"keys": [{{"name": "old", "hash": "{digest}", "created": 1}}]}}')
    found = keys.verify(keys.load(path), "sk-old")
    assert found is not None
    assert (found.weight, found.kv_floor, found.kv_ceiling) == (1.0, 0.0, 1.0)
