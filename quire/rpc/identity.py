"""A service's identity from its settings: its files are read and checked before anything is opened with them."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from quire.errors import QuireError
from quire.rpc.security import Security
from quire.settings import SERVICES, ServiceSettings

log = structlog.get_logger()


class IdentityError(QuireError):
    """A certificate, a key or an authority is of no use; the message names the file and says why."""


def identity_of(service: str, settings: ServiceSettings) -> Security:
    """What `settings` say of `service`; it expects the next one on a request's way. Raises IdentityError."""
    token = settings.rpc_token.get_secret_value() if settings.rpc_token else ""
    if not settings.tls_cert:
        return Security(token=token)
    files = Path(settings.tls_cert), Path(settings.tls_key), Path(settings.tls_ca)
    identity = read_identity(service, *files)
    return replace(identity, token=token, peer=dns_name(dict(pairwise(SERVICES)).get(service, "")))


def read_identity(name: str, cert: Path, key: Path, ca: Path) -> Security:
    """That of `name`, from files in PEM, each checked. Raises IdentityError."""
    expires = _check(cert, key, ca, dns_name(name))
    log.info(
        "mutual TLS between the services", certificate=str(cert), expires=f"{expires:%Y-%m-%d %H:%M} UTC"
    )
    return Security(certificate=_read(cert), private_key=_read(key), authorities=_read(ca))


def dns_name(service: str) -> str:
    """The name that the certificate of `service` must carry; an underscore is none of DNS's characters."""
    return service.replace("_", "-")


def _check(cert: Path, key: Path, ca: Path, name: str) -> dt.datetime:
    """When the certificate expires."""
    own, *chain = _certificates(cert)
    now = dt.datetime.now(dt.UTC)
    if own.not_valid_after_utc <= now:
        raise IdentityError(f"the certificate {cert} expired at {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if own.not_valid_before_utc > now:
        raise IdentityError(
            f"the certificate {cert} is not valid before {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        )
    names = _dns_names(own)
    if name not in names:
        raise IdentityError(
            f"the certificate {cert} is for {', '.join(names) or 'no name'}: the other services look for {name}"
        )
    if _public_bytes(_private_key(key).public_key()) != _public_bytes(own.public_key()):
        raise IdentityError(f"the key {key} does not belong to the certificate {cert}")
    if not any(_issued(issuer, own) for issuer in (*chain, *_certificates(ca))):
        raise IdentityError(f"the certificate {cert} was not issued by an authority in {ca}")
    return own.not_valid_after_utc


def _certificates(path: Path) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise IdentityError(f"{path} is not a certificate in PEM") from None


def _private_key(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(f"{path} is not a private key in PEM without a password") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}") from None


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
