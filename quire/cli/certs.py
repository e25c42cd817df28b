"""`quire certs`: an authority for development, and a certificate for each service."""

import datetime as dt
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from quire.cli.authority import (
    AUTHORITY_FILE,
    AUTHORITY_KEY_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    Authority,
    CertificateError,
)
from quire.files import EVERYBODYS, OWNERS_ALONE, replace_files
from quire.rpc.identity import dns_name
from quire.settings import SERVICES

OPERATOR = "operator"
"""Who is no service: `quire serve` itself, grpcurl, scripts."""

_AUTHORITY_VALID_FOR = dt.timedelta(days=3650)
_OWN_HOST = ("localhost", "127.0.0.1", "::1")


def certs(
    folder: Annotated[Path, typer.Argument(help="Where to write; an authority that is there is used again.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Another DNS name or IP address under which services are reached; repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the certificates are valid.")] = 365,
) -> None:
    """Make a development authority and a certificate for each service, for mutual TLS between them."""
    hosts = (*_OWN_HOST, *(host or ()))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = _authority(folder)
        for name in (*SERVICES, OPERATOR):
            _issue(authority, folder / name, name, hosts, dt.timedelta(days=days))
    except OSError as error:
        _fail(f"no certificates: {error.filename or folder}: {error.strerror}")
    except (CertificateError, ValueError) as error:
        _fail(str(error))
    typer.echo(
        f"Certificates for {', '.join(SERVICES)} and {OPERATOR} are in {folder}, valid for {days} days."
    )
    typer.echo(f"quire serve --certs {folder} uses them; docs/security.md says how services elsewhere do.")
    typer.echo(f"Whoever has {folder / AUTHORITY_KEY_FILE} can be any service: it belongs on no server.")


def _fail(message: str) -> NoReturn:
    typer.echo(f"quire: {message}", err=True)
    raise typer.Exit(1) from None


def _authority(folder: Path) -> Authority:
    if (folder / AUTHORITY_KEY_FILE).exists():
        return Authority.load(folder)
    made = Authority.create("Quire development authority", _AUTHORITY_VALID_FOR)
    made.save(folder)
    return made


def _issue(
    authority: Authority, folder: Path, name: str, hosts: tuple[str, ...], valid_for: dt.timedelta
) -> None:
    """Write what one process needs into a folder of its own, to be mounted as it is."""
    # Compose and most other networks know a service by its name with the underscore.
    certificate, key = authority.issue(dns_name(name), (name, *hosts), valid_for)
    folder.mkdir(mode=0o700, exist_ok=True)
    replace_files(
        {
            folder / KEY_FILE: (key, OWNERS_ALONE),
            folder / CERTIFICATE_FILE: (certificate, EVERYBODYS),
            folder / AUTHORITY_FILE: (authority.pem(), EVERYBODYS),
        }
    )
