"""Makes a certificate authority for development, and certificates for services under it."""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from quire.files import EVERYBODYS, OWNERS_ALONE, replace_files

CERTIFICATE_FILE, KEY_FILE, AUTHORITY_FILE = "tls.crt", "tls.key", "ca.crt"
"""What Kubernetes and cert-manager call the parts of a TLS secret."""

AUTHORITY_KEY_FILE = "ca.key"

# Clocks of two machines differ by some minutes.
_CLOCK_SLACK = dt.timedelta(minutes=5)


class CertificateError(Exception):
    """A certificate cannot be made; the message is for people."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Whom peers trust."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, name: str, valid_for: dt.timedelta) -> Self:
        """A new one that signs itself and may issue end certificates only."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = (
            _builder(subject, subject, key.public_key(), valid_for)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The one that `save` wrote. Raises CertificateError, FileNotFoundError where there is none."""
        certificate, key = (folder / name for name in (AUTHORITY_FILE, AUTHORITY_KEY_FILE))
        try:
            loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
            if not isinstance(loaded, ec.EllipticCurvePrivateKey):
                raise CertificateError(f"{key} is not a key that `quire certs` made")
            return cls(x509.load_pem_x509_certificate(certificate.read_bytes()), loaded)
        except (ValueError, TypeError) as error:
            raise CertificateError(f"the authority in {folder} cannot be read: {error}") from None

    def save(self, folder: Path) -> None:
        """Write certificate and key. Raises OSError."""
        # The key last: an authority without one is made anew.
        replace_files(
            {
                folder / AUTHORITY_FILE: (self.pem(), EVERYBODYS),
                folder / AUTHORITY_KEY_FILE: (_key_pem(self.key), OWNERS_ALONE),
            }
        )

    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, hosts: Sequence[str], valid_for: dt.timedelta) -> tuple[bytes, bytes]:
        """Certificate and key, as PEM, for a process that is server and client.

        `name` is its DNS name; `hosts` are further names and IP addresses under which it is reached.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys((name, *hosts))])
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            _builder(subject, self.certificate.subject, public, valid_for)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, valid_for: dt.timedelta
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + valid_for) - _CLOCK_SLACK)
        .not_valid_after(now + valid_for)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
