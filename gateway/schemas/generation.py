"""The parameters that chat and plain completions share.

The API's JSON is flat, so the two requests extend this one model; everywhere else we compose.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints
from typing_extensions import TypeAliasType

INT32_MAX = 2**31 - 1

TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
# Lists stop at their first bad item: a hundred thousand complaints would help nobody. They have names because
# annotated types cannot be members of a union under Python 3.11.
TokenIds = TypeAliasType("TokenIds", Annotated[list[TokenId], FailFast(), Field(min_length=1)])
StopStrings = TypeAliasType("StopStrings", Annotated[list[str], FailFast()])
BiasKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")]


class StreamOptions(BaseModel):
    """What a stream tells besides text."""

    model_config = ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(BaseModel):
    """Sampling, stopping and output parameters.

    Strict: `"5"` is no integer and `1` no boolean, since a silent guess hides a mistake. Unknown fields are
    let through, because clients send fields of other servers; `schemas.unsupported` refuses those that would
    have changed the answer.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = Field(None, description="Name of the served model; any if there is only one.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1, le=INT32_MAX)
    min_tokens: int | None = Field(None, ge=0, le=INT32_MAX)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=1e-6, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX, description="0 or -1 keeps all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[BiasKey, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stop: str | StopStrings | None = None
    stop_token_ids: list[TokenId] | None = Field(None, fail_fast=True)
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = Field(None, description="Return the ids of generated tokens.")
    priority: int | None = Field(None, ge=-(2**31), le=INT32_MAX, description="Lower runs first.")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=128, description="Narrows sharing of the prefix cache."
    )
    public_prefix_tokens: int | None = Field(
        None,
        ge=0,
        le=INT32_MAX,
        description="Leading prompt tokens that are no secret: the prefix cache shares them with other keys that "
        "say so too.",
    )
    timeout: float | None = Field(
        None, gt=0, le=86400, description="Seconds by which the request should be finished."
    )
    user: str | None = None

    @property
    def num_choices(self) -> int:
        """Choices per prompt."""
        return self.n or 1

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk carries the usage so far."""
        return bool(self.include_usage and self.stream_options and self.stream_options.continuous_usage_stats)


Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
