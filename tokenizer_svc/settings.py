"""What the tokenizer service can be told."""

from pydantic import Field, ValidationInfo, field_validator

from quire.settings import CommaSeparated, ServiceSettings


class TokenizerSettings(ServiceSettings):
    """Settings of `python -m tokenizer_svc`."""

    listen: str = Field("127.0.0.1:8001", description="address to serve on: host:port, or unix:/path")
    redis_url: str = Field("", description="redis://host:port/db where schedulers register; empty: nowhere")
    schedulers: CommaSeparated = Field(
        (),
        description="addresses of schedulers, comma-separated, beside those that register; without redis_url "
        "127.0.0.1:8002",
        validate_default=True,
    )
    model: str = Field(description="checkpoint directory or hub id whose tokenizer and chat template to use")
    threads: int = Field(2, ge=1, le=64, description="threads for long prompts and chat templates")
    resume_s: float = Field(
        30.0, ge=0, description="seconds that requests, new ones too, wait for a lost scheduler to come back"
    )
    max_prompt_chars: int = Field(
        8_000_000, ge=1, description="most characters of a prompt or a rendered chat"
    )

    @field_validator("schedulers")
    @classmethod
    def _some_scheduler(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return value if value or info.data.get("redis_url") else ("127.0.0.1:8002",)
