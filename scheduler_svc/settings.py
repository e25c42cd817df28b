"""What the scheduler service can be told."""

from pydantic import Field

from quire.settings import CommaSeparated, ServiceSettings
from scheduler_svc.core.limits import Limits

_DEFAULT = Limits()


class SchedulerSettings(ServiceSettings):
    """Settings of `python -m scheduler_svc`."""

    listen: str = Field("127.0.0.1:8002", description="address to serve on: host:port, or unix:/path")
    workers: CommaSeparated = Field(
        ("127.0.0.1:8003",), min_length=1, description="addresses of workers, comma-separated"
    )
    max_queue_requests: int = Field(
        _DEFAULT.max_queue_sequences, ge=1, description="sequences that may wait before requests are refused"
    )
    max_queue_tokens: int = Field(
        _DEFAULT.max_queue_tokens,
        ge=1,
        description="tokens to compute that may wait before requests are refused",
    )
    max_step_tokens: int = Field(
        _DEFAULT.max_step_tokens, ge=1, description="token positions per step; decode rows are served first"
    )
    pipeline_depth: int = Field(
        _DEFAULT.pipeline_depth, ge=1, le=16, description="commands in flight to each worker"
    )
    max_decode_steps: int = Field(
        _DEFAULT.max_decode_steps, ge=1, le=64, description="decode steps per command, at most"
    )
    decode_burst_s: float = Field(
        _DEFAULT.decode_burst_s, ge=0, description="seconds that the decode steps of one command may take"
    )
    worker_hang_s: float = Field(
        60.0, gt=0, description="seconds without an answer after which a worker with commands is given up"
    )
    max_sequences_per_request: int = Field(
        _DEFAULT.max_sequences_per_request, ge=1, description="largest n of a request"
    )

    def limits(self) -> Limits:
        """The core's bounds."""
        return Limits(
            max_queue_sequences=self.max_queue_requests,
            max_queue_tokens=self.max_queue_tokens,
            max_step_tokens=self.max_step_tokens,
            pipeline_depth=self.pipeline_depth,
            max_decode_steps=self.max_decode_steps,
            decode_burst_s=self.decode_burst_s,
            max_sequences_per_request=self.max_sequences_per_request,
        )
