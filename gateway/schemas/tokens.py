"""`POST /tokenize` and `POST /detokenize`, in vLLM's shape."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Field, RootModel, Tag

from gateway.schemas.chat import ChatPromptFields
from gateway.schemas.generation import TokenId


class TokenizeTextRequest(BaseModel):
    """Text to token ids."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None


class TokenizeChatRequest(ChatPromptFields):
    """A chat to token ids."""

    model: str | None = None


def _input_kind(document: object) -> str:
    return "Chat" if isinstance(document, dict) and "messages" in document else "Text"


class TokenizeRequest(
    RootModel[
        Annotated[
            Annotated[TokenizeTextRequest, Tag("Text")] | Annotated[TokenizeChatRequest, Tag("Chat")],
            Discriminator(_input_kind),
        ]
    ]
):
    """A text or a chat."""


class DetokenizeRequest(BaseModel):
    """Token ids to text."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    tokens: list[TokenId] = Field(fail_fast=True)
