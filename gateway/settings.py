"""What the gateway can be told."""

from pydantic import Field, SecretStr, field_validator

from quire.settings import CommaSeparated, ServiceSettings


class GatewaySettings(ServiceSettings):
    """Settings of `python -m gateway`."""

    listen: str = Field("0.0.0.0:8000", description="address to serve HTTP on: host:port, or unix:/path")
    tokenizers: CommaSeparated = Field(
        ("127.0.0.1:8001",),
        min_length=1,
        description="addresses of tokenizer services, comma-separated; of a host name every address is one; each "
        "request goes to the least loaded",
    )
    api_key: SecretStr | None = Field(
        None, description="a key that clients may send, besides the keys file's"
    )
    keys_file: str = Field(
        "", description="JSON file of hashed API keys; empty: keys.json in the user's configuration of quire"
    )
    metrics_public: bool = Field(False, description="serve /metrics without an API key")
    metrics_upstreams: CommaSeparated = Field(
        (), description="http://host:port/metrics of other services to show in /metrics, comma-separated"
    )
    shared_listen: bool = Field(
        False, description="listen beside other gateways at the same address: the kernel spreads connections"
    )
    metrics_peers: CommaSeparated = Field(
        (),
        description="http://host:port/metrics of the other gateways at the same address, whose figures are added up "
        "with this one's in /metrics, comma-separated",
    )
    max_connections: int = Field(
        8192, ge=1, description="most open connections; more are answered with 503 and closed"
    )
    max_requests: int = Field(4096, ge=1, description="most requests answered at once; more get a 429")
    max_request_s: float = Field(
        3600.0, ge=0, description="seconds a request may take, whatever its `timeout` is; 0: no limit"
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        description="seconds from a connection's start, or a later request's first byte, to its last header",
    )
    body_timeout_s: float = Field(60.0, gt=0, description="seconds from the headers to the body's last byte")
    # Longer than the idle timeout of common load balancers, so that they never reuse a connection that we close.
    keep_alive_s: int = Field(75, ge=1, description="seconds that a connection may be idle between requests")
    # Longer than the interval of load balancers' health checks.
    leave_delay_s: float = Field(
        2.0,
        ge=0,
        description="seconds after SIGTERM, of grace_s, in which requests are still taken while readiness is off",
    )
    max_header_bytes: int = Field(
        32768, ge=1024, description="longest request line and headers together, bytes"
    )
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="longest request body, bytes")
    max_n: int = Field(128, ge=1, description="most choices per prompt (n, best_of)")
    max_prompts: int = Field(1024, ge=1, description="most prompts in one completions request")
    max_messages: int = Field(2048, ge=1, description="most messages of a chat")
    max_stop: int = Field(16, ge=0, description="most stop strings, and most stop token ids")
    max_logprobs: int = Field(20, ge=0, description="most likeliest tokens returned per position")
    max_logit_bias: int = Field(1024, ge=0, description="most entries of logit_bias")
    max_buffered_bytes: int = Field(
        2**20,
        ge=4096,
        description="bytes of a stream kept for a client that reads slowly, then it is cancelled",
    )

    @field_validator("api_key", mode="after")
    @classmethod
    def _usable_key(cls, value: SecretStr | None) -> SecretStr | None:
        """An empty key counts as none: it must never open the server. The rest must fit in a header."""
        if value is None or not value.get_secret_value():
            return None
        key = value.get_secret_value()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError("must be printable ASCII without spaces")
        return value
