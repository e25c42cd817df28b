"""`POST /v1/completions`."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import FailFast, Field

from gateway.schemas.generation import GenerationRequest, TokenId

_Ids = Annotated[list[TokenId], FailFast(), Field(min_length=1)]
_Text = Annotated[str, Field(min_length=1)]

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationRequest):
    """A completion, with OpenAI's parameters and vLLM's."""

    prompt: (
        _Text
        | Annotated[list[_Text], FailFast(), Field(min_length=1)]
        | _Ids
        | Annotated[list[_Ids], FailFast(), Field(min_length=1)]
    )
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0)
    add_special_tokens: bool | None = None

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, each text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [item for item in self.prompt if isinstance(item, int)]
        return [ids] if ids else [item for item in self.prompt if not isinstance(item, int)]
