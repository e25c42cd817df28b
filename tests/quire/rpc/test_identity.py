"""An identity that would be of no use is one clear line at the start, not a riddle at the first connection."""

import datetime as dt
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quire.rpc.identity import IdentityError, identity_of, read_identity
from quire.settings import SERVICES, ServiceSettings, SettingsError, load_settings
from tests.support.identities import DAY, TOKEN, TestAuthority

REPOSITORY = Path(__file__).parents[3]


class ExampleSettings(ServiceSettings):
    """Settings of any service."""

    listen: str = "127.0.0.1:0"


@pytest.fixture(scope="module")
def authority() -> TestAuthority:
    return TestAuthority()


def flags(cert: Path, key: Path, ca: Path) -> list[str]:
    return ["--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(ca)]


def test_each_service_expects_the_certificate_of_the_next_one(
    authority: TestAuthority, tmp_path: Path
) -> None:
    expected = {}
    for service in SERVICES:
        files = authority.files(tmp_path / service, service.replace("_", "-"))
        settings = load_settings(ExampleSettings, service, [*flags(*files), "--rpc-token", TOKEN])
        identity = identity_of(service, settings)
        assert identity.has_tls
        assert identity.token == TOKEN
        expected[service] = identity.peer
    assert expected == {
        "gateway": "tokenizer-svc",
        "tokenizer_svc": "scheduler-svc",
        "scheduler_svc": "gpu-worker",
        "gpu_worker": "",
    }


def test_without_files_there_is_no_tls_and_an_empty_token_is_none() -> None:
    identity = identity_of("gateway", load_settings(ExampleSettings, "gateway", ["--rpc-token", ""]))
    assert not identity.has_tls
    assert identity.token == ""


def test_the_token_can_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("QUIRE_RPC_TOKEN_FILE", str(tmp_path / "token"))
    assert identity_of("gateway", load_settings(ExampleSettings, "gateway", [])).token == TOKEN


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--tls-cert", "a"], "tls-cert, tls-key and tls-ca are needed together"),
        (["--tls-ca", "a", "--tls-key", "b"], "tls-cert, tls-key and tls-ca are needed together"),
        (["--rpc-token", "short"], "rpc-token: Value error, must be 16 or more"),
        (["--rpc-token", "with a space in its middle"], "rpc-token: Value error, must be 16 or more"),
        (["--rpc-token", "ümläut-ümläut-ümläut"], "rpc-token: Value error, must be 16 or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(ExampleSettings, "gateway", given)


def missing(files: tuple[Path, Path, Path]) -> None:
    files[0].unlink()


def no_certificate(files: tuple[Path, Path, Path]) -> None:
    files[0].write_text("nonsense")


def no_key(files: tuple[Path, Path, Path]) -> None:
    files[1].write_text("nonsense")


def another_key(files: tuple[Path, Path, Path]) -> None:
    TestAuthority().files(files[0].parent / "other", "gateway")[1].rename(files[1])


def another_authority(files: tuple[Path, Path, Path]) -> None:
    files[2].write_bytes(TestAuthority().authority.pem())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, "cannot read .*tls.crt: No such file or directory$"),
        (no_certificate, "tls.crt is not a certificate in PEM$"),
        (no_key, "tls.key is not a private key in PEM without a password$"),
        (another_key, "the key .*tls.key does not belong to the certificate .*tls.crt$"),
        (another_authority, "the certificate .*tls.crt was not issued by an authority in .*ca.crt$"),
    ],
)
def test_files_that_do_not_go_together_are_named(
    authority: TestAuthority, tmp_path: Path, damage, message: str
) -> None:
    files = authority.files(tmp_path, "gateway")
    damage(files)
    with pytest.raises(IdentityError, match=message):
        read_identity("gateway", *files)


def test_an_authority_that_is_being_replaced_stands_beside_the_new_one(
    authority: TestAuthority, tmp_path: Path
) -> None:
    cert, key, ca = authority.files(tmp_path, "gateway")
    ca.write_bytes(TestAuthority().authority.pem() + ca.read_bytes())
    assert read_identity("gateway", cert, key, ca).has_tls


@pytest.mark.parametrize(
    ("name", "valid_for", "message"),
    [
        ("gateway", -DAY, r"tls.crt expired at \d{4}-\d\d-\d\d \d\d:\d\d UTC"),
        ("gpu-worker", DAY, "tls.crt is for gpu-worker: the other services look for gateway"),
    ],
)
def test_a_service_with_an_expired_or_foreign_certificate_ends_with_one_line(
    authority: TestAuthority, tmp_path: Path, name: str, valid_for: dt.timedelta, message: str
) -> None:
    files = authority.files(tmp_path, name, valid_for=valid_for)
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "--listen", "127.0.0.1:0", *flags(*files)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("gateway: the certificate ")
    assert re.search(message, line), line
