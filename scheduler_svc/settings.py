"""What the scheduler service can be told."""

import tempfile

from pydantic import Field, ValidationInfo, field_validator

from quire.settings import CommaSeparated, ServiceSettings
from scheduler_svc.core.limits import Limits

_DEFAULT = Limits()


class SchedulerSettings(ServiceSettings):
    """Settings of `python -m scheduler_svc`."""

    listen: str = Field("127.0.0.1:8002", description="address to serve on: host:port, or unix:/path")
    redis_url: str = Field(
        "",
        description="redis://host:port/db of index, registry, leases and ledger; empty: in this process, without index",
    )
    advertise: str = Field(
        "",
        description="address under which tokenizers reach this scheduler; empty: `listen`, or this host's own",
    )
    workers: CommaSeparated = Field(
        (),
        description="addresses of workers that do not register, comma-separated; without redis_url 127.0.0.1:8003",
        validate_default=True,
    )
    max_queue_requests: int = Field(
        _DEFAULT.max_queue_sequences, ge=1, description="sequences that may wait before requests are refused"
    )
    max_queue_tokens: int = Field(
        _DEFAULT.max_queue_tokens,
        ge=1,
        description="tokens to compute that may wait before requests are refused",
    )
    # Most proxies give up on an answer that has not begun after a minute.
    max_wait_s: float = Field(
        _DEFAULT.max_wait_s,
        ge=0,
        description="seconds that requests may have to wait for their first token, as predicted, before they are "
        "refused; 0: no bound",
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
        _DEFAULT.decode_burst_s,
        ge=0,
        description="seconds that the decode steps of one command may take, where the command itself does not take "
        "longer; 0: one step",
    )
    worker_hang_s: float = Field(
        10.0,
        gt=0,
        description="seconds without an answer after which a worker with commands is given up; twenty times its "
        "longest silence of late if that is more",
    )
    worker_return_s: float = Field(
        _DEFAULT.worker_return_s,
        ge=0,
        description="seconds that requests wait for another worker after the last one was lost, before they fail",
    )
    itl_target_s: float = Field(
        _DEFAULT.itl_target_s,
        ge=0,
        description="seconds that a step in which sequences decode may take; prompts are cut to it; 0: no bound",
    )
    shared_step_s: float = Field(
        _DEFAULT.shared_step_s,
        ge=0,
        description="seconds that a step with prompts may take while several tenants are served; 0: no bound",
    )
    short_prompt_tokens: int = Field(
        _DEFAULT.short_prompt_tokens,
        ge=0,
        description="prompts of at most so many tokens to compute are not held up by longer ones",
    )
    flight_record_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="bytes of the scheduler's latest inputs that are kept for a dump on SIGUSR2 or a fault, prompts "
        "among them; 0: none",
    )
    flight_record_dir: str = Field(
        tempfile.gettempdir(), description="directory for dumps of the flight recorder"
    )
    max_sequences_per_request: int = Field(
        _DEFAULT.max_sequences_per_request, ge=1, description="largest n of a request"
    )

    @field_validator("workers")
    @classmethod
    def _some_worker(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return value if value or info.data.get("redis_url") else ("127.0.0.1:8003",)

    def limits(self) -> Limits:
        """The core's bounds."""
        return Limits(
            max_queue_sequences=self.max_queue_requests,
            max_queue_tokens=self.max_queue_tokens,
            max_wait_s=self.max_wait_s,
            max_step_tokens=self.max_step_tokens,
            pipeline_depth=self.pipeline_depth,
            max_decode_steps=self.max_decode_steps,
            decode_burst_s=self.decode_burst_s,
            itl_target_s=self.itl_target_s,
            shared_step_s=self.shared_step_s,
            short_prompt_tokens=self.short_prompt_tokens,
            max_sequences_per_request=self.max_sequences_per_request,
            worker_return_s=self.worker_return_s,
        )
