"""No room on the disk: one clear line, what was there stays as it was, and nothing half-written is left or believed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quire import keys
from quire.cli import app
from quire.cli.authority import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE
from quire.keys import KeysFileError
from quire.rpc.identity import read_identity
from quire.settings import SERVICES
from tests.support.checkpoints import checkpoint
from tests.support.fake_hub import running_hub
from tests.support.server import REPOSITORY
from tests.support.small_disk import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """One of four megabytes."""
    with small_disk(tmp_path, 4 * 2**20) as found:
        yield found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.name != "filler")


def test_the_keys_file_stays_as_it_was(disk: SmallDisk) -> None:
    path = disk.folder / "keys.json"
    key = keys.mint_first(path)
    before = path.read_bytes()
    disk.fill()
    with pytest.raises(KeysFileError, match=r"keys\.json: No space left on device"):
        keys.save(path, [*keys.load(path), keys.record("sk-new", "new")])
    assert path.read_bytes() == before
    assert names(disk.folder) == ["keys.json"]
    disk.empty()
    keys.save(path, [*keys.load(path), keys.record("sk-new", "new")])
    assert [record.name for record in keys.load(path)] == ["default", "new"]
    assert keys.verify(keys.load(path), key)


def test_a_first_key_that_cannot_be_kept_is_not_minted(disk: SmallDisk) -> None:
    disk.fill()
    path = disk.folder / "keys.json"
    flags = ("--listen", "127.0.0.1:0", "--keys-file", str(path), "--log-format", "json")
    gateway = subprocess.run(
        [sys.executable, "-m", "gateway", *flags], cwd=REPOSITORY, capture_output=True, text=True
    )
    lines = [line for line in gateway.stderr.splitlines() if not line.startswith("{")]
    assert lines == [f"gateway: cannot write the API keys to {path}: No space left on device"]
    assert (gateway.returncode, gateway.stdout) == (1, "")
    assert names(disk.folder) == []


@pytest.mark.parametrize("leave", [0, 8192, 24_576])
def test_certificates_stay_a_pair_and_an_authority_is_made_whole_or_not_at_all(
    disk: SmallDisk, leave: int
) -> None:
    folder = disk.folder / "certs"
    disk.fill(leave)
    made = CliRunner().invoke(app, ["certs", str(folder)])
    assert made.exit_code == 1
    assert made.stderr == f"quire: no certificates: {folder}: No space left on device\n"
    assert not [name for name in names(disk.folder) if name.startswith(".")]
    disk.empty()
    assert CliRunner().invoke(app, ["certs", str(folder)]).exit_code == 0
    disk.fill(leave=4096)
    assert CliRunner().invoke(app, ["certs", str(folder)]).exit_code == 1
    for name in SERVICES:
        of_service = (folder / name / file for file in (CERTIFICATE_FILE, KEY_FILE, AUTHORITY_FILE))
        assert read_identity(name, *of_service).has_tls


@pytest.mark.slow
def test_a_model_that_does_not_fit_into_the_cache_is_fetched_whole_when_there_is_room(
    disk: SmallDisk,
) -> None:
    model = checkpoint()
    fetch = "import sys; from quire.model_files import resolve_model; print(resolve_model(sys.argv[1]))"
    with running_hub(model) as url:
        hub = {"HF_ENDPOINT": url, "HF_HOME": str(disk.mount), "HF_HUB_DISABLE_XET": "1"}

        def run(*words: str) -> "subprocess.CompletedProcess[str]":
            command = [*disk.inside, sys.executable, *words]
            environment = {**os.environ, **hub, "PYTHONPATH": str(REPOSITORY)}
            return subprocess.run(command, env=environment, capture_output=True, text=True)

        disk.fill(leave=sum(path.stat().st_size for path in model.iterdir()) // 2)
        worker = run(
            "-m", "gpu_worker", "--model", "owner/tiny", "--device", "cpu", "--listen", "127.0.0.1:0"
        )
        assert worker.returncode == 1
        assert worker.stderr.splitlines()[-1].startswith("gpu_worker: cannot get owner/tiny from the hub: ")
        assert "No space left on device" in worker.stderr.splitlines()[-1]
        disk.empty()
        fetched = run("-c", fetch, "owner/tiny")
    assert fetched.returncode == 0, fetched.stderr
    there = disk.folder / Path(fetched.stdout.strip()).relative_to(disk.mount)
    assert {path.name for path in there.iterdir()} == {path.name for path in model.iterdir()}
    for path in model.iterdir():
        assert (there / path.name).read_bytes() == path.read_bytes()
