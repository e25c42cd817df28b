"""Who a process is to the others and whom it trusts: mutual TLS, a shared token, both, or neither.

A process has one identity, as it has one log: `quire.service.run` puts it in force before anything is opened, and
every channel and server of the process uses it, so that none can be forgotten.
"""

from dataclasses import dataclass, field

import grpc


@dataclass(frozen=True, slots=True)
class Security:
    """Certificates as PEM; all three or none. Secrets stay out of the representation."""

    certificate: bytes = b""
    """Our own, with intermediates after it: shown to clients and to servers alike."""
    private_key: bytes = field(default=b"", repr=False)
    authorities: bytes = b""
    """Peers must show a certificate that one of these has issued."""
    token: str = field(default="", repr=False)
    """Sent with each call, and asked of each."""
    peer: str = ""
    """DNS name that servers' certificates must carry, whatever their address; "": the address's host."""

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted and both ends show certificates."""
        return bool(self.certificate)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a server that serves only clients with a certificate."""
        pair = (self.private_key, self.certificate)
        return grpc.ssl_server_credentials([pair], self.authorities, require_client_auth=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a client that shows its certificate and checks the server's."""
        return grpc.ssl_channel_credentials(self.authorities, self.private_key, self.certificate)


_in_force = Security()


def put_in_force(security: Security) -> None:
    """Use `security` for the channels and servers that this process opens from now on."""
    global _in_force
    _in_force = security


def in_force() -> Security:
    """What this process uses; nothing at all until something was put in force."""
    return _in_force
