"""`quire certs` makes what the services' TLS settings want, and keeps keys to their owner."""

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quire.cli import app
from quire.launcher import free_port
from quire.rpc.identity import dns_name, read_identity
from quire.settings import SERVICES


def make(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["certs", str(folder), *options])
    assert result.exit_code == 0, result.output
    return result.output


def files(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "tls.crt", folder / "tls.key", folder / "ca.crt"


def test_every_service_gets_a_folder_that_its_settings_accept(tmp_path: Path) -> None:
    printed = make(tmp_path / "certs", "--days", "3")
    assert "valid for 3 days" in printed
    for name in (*SERVICES, "operator"):
        assert read_identity(name, *files(tmp_path / "certs" / name)).has_tls


def test_only_their_owner_reads_keys(tmp_path: Path) -> None:
    make(tmp_path / "certs")
    keys = sorted((tmp_path / "certs").rglob("*.key"))
    assert len(keys) == len(SERVICES) + 2
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert stat.S_IMODE((tmp_path / "certs").stat().st_mode) == 0o700


def test_certificates_carry_names_of_the_service_of_this_host_and_of_others_asked_for(tmp_path: Path) -> None:
    from cryptography import x509

    make(tmp_path, "--host", "quire.example", "--host", "10.0.0.7")
    certificate = x509.load_pem_x509_certificate((tmp_path / "gpu_worker" / "tls.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {
        dns_name("gpu_worker"),
        "gpu_worker",
        "localhost",
        "quire.example",
    }
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"127.0.0.1", "::1", "10.0.0.7"}


def test_again_it_renews_certificates_under_the_same_authority(tmp_path: Path) -> None:
    make(tmp_path)
    authority, old = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "gateway" / "tls.crt").read_bytes()
    make(tmp_path)
    assert (tmp_path / "ca.crt").read_bytes() == authority
    assert (tmp_path / "gateway" / "tls.crt").read_bytes() != old


def test_a_server_told_of_a_folder_without_certificates_says_so_before_it_starts_anything(
    tmp_path: Path,
) -> None:
    port = str(free_port())
    result = CliRunner().invoke(app, ["serve", "--port", port, "--certs", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr == f"quire: cannot read {tmp_path}/operator/tls.crt: No such file or directory\n"


@pytest.mark.parametrize("obstacle", ["a file in the way", "a damaged authority"])
def test_what_cannot_be_done_is_one_line(tmp_path: Path, obstacle: str) -> None:
    folder = tmp_path / "certs"
    if obstacle == "a file in the way":
        folder.write_text("")
    else:
        make(folder)
        (folder / "ca.key").write_text("nonsense")
    result = CliRunner().invoke(app, ["certs", str(folder)])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("quire: ")
