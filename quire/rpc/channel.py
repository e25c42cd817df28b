"""Client channels with the keepalive and limits that every service uses."""

import grpc

from quire.rpc import security
from quire.rpc.security import Security
from quire.rpc.token import TokenChannel

MAX_MESSAGE_BYTES = 64 * 2**20

# A peer that says nothing is asked after the one, and given up after the other: within ten seconds together. Nearly all
# of it is the other, because a peer that only stands still for some seconds goes on where it was.
KEEPALIVE_TIME_S = 2
KEEPALIVE_TIMEOUT_S = 7

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    # Where the peer's kernel still acknowledges what the peer does not, as of a stopped process, this one counts.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Without this, channels of one process to one address share a connection and its flow control.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def open_channel(address: str, identity: Security | None = None) -> grpc.aio.Channel:
    """Open a channel to `host:port` or `unix:/path`; it connects when first used and reconnects by itself.

    It is as secure as `identity` says: by default, as what is in force in this process.
    """
    identity = identity or security.in_force()
    options: list[tuple[str, str | int]] = list(_OPTIONS)
    if identity.has_tls and identity.peer:
        options.append(("grpc.ssl_target_name_override", identity.peer))
    elif address.startswith("unix:"):
        # The default authority of a Unix socket is the escaped path, which some servers refuse.
        options.append(("grpc.default_authority", "localhost"))
    if identity.has_tls:
        channel = grpc.aio.secure_channel(address, identity.channel_credentials(), options=options)
    else:
        channel = grpc.aio.insecure_channel(address, options=options)
    return TokenChannel(channel, identity.token) if identity.token else channel
