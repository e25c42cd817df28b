"""Checkpoints are found as directories or hub ids, and what is not there is a clear error."""

import os
from pathlib import Path

import pytest

from quire.errors import InvalidRequest, NotFound
from quire.model_files import model_revision, read_json, resolve_model


def test_a_directory_is_its_own_place(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_directory_without_config_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("source", ["/no/such/place", "./nothing", "a/b/c", "noslash"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(source: str) -> None:
    with pytest.raises(NotFound, match="no directory"):
        resolve_model(source)


def test_a_hub_id_that_cannot_be_had_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="quire-tests/not-there"):
        resolve_model("quire-tests/not-there")


def test_json_that_is_missing_torn_or_no_object_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json is missing"):
        read_json(tmp_path, "config.json")
    for text in ("{", "[]", "\x00"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InvalidRequest, match=r"config\.json"):
            read_json(tmp_path, "config.json")


def test_the_revision_changes_with_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    before = model_revision(tmp_path)
    assert model_revision(tmp_path) == before
    os.utime(weights, (1, 1))
    assert model_revision(tmp_path) != before


def test_the_revision_of_a_hub_snapshot_is_its_commit(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    assert model_revision(snapshot) == "0123abcd"
