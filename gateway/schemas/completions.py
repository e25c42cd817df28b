"""`POST /v1/completions`."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Discriminator, FailFast, Field, StringConstraints, Tag
from typing_extensions import TypeAliasType

from gateway.schemas.generation import GenerationRequest, TokenIds

PromptText = TypeAliasType("PromptText", Annotated[str, StringConstraints(min_length=1)])
PromptTexts = TypeAliasType("PromptTexts", Annotated[list[PromptText], FailFast(), Field(min_length=1)])
PromptTokens = TypeAliasType("PromptTokens", Annotated[list[TokenIds], FailFast(), Field(min_length=1)])


def _prompt_kind(prompt: object) -> str | None:
    """Tell the kinds apart first, so that complaints are about the one that was meant."""
    match prompt:
        case str():
            return "Text"
        case [int(), *_]:
            return "Tokens"
        case [list(), *_]:
            return "TokenLists"
        case list():
            return "Texts"
    return None


Prompt = Annotated[
    Annotated[PromptText, Tag("Text")]
    | Annotated[PromptTexts, Tag("Texts")]
    | Annotated[TokenIds, Tag("Tokens")]
    | Annotated[PromptTokens, Tag("TokenLists")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_kind",
        custom_error_message="Input should be a string, token ids, or a list of either",
    ),
]

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationRequest):
    """A completion, with OpenAI's parameters and vLLM's."""

    prompt: Prompt
    echo: bool | None = None
    best_of: int | None = Field(
        None, ge=1, description="Choices to compute for each prompt; the n likeliest are returned."
    )
    logprobs: int | None = Field(None, ge=0)
    add_special_tokens: bool | None = None

    @property
    def num_computed(self) -> int:
        """Choices that are computed for each prompt, from which `num_choices` are returned."""
        return self.num_choices if self.best_of is None else self.best_of

    @property
    def selects(self) -> bool:
        """Whether more choices are computed than returned."""
        return self.num_computed > self.num_choices

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, each text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [item for item in self.prompt if isinstance(item, int)]
        return [ids] if ids else [item for item in self.prompt if not isinstance(item, int)]
