"""`POST /v1/chat/completions`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gateway.schemas.generation import INT32_MAX, GenerationRequest, Role

_OPEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class TextPart(BaseModel):
    """A part of a message's content; this server's models read text only."""

    model_config = _OPEN

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    """What an earlier answer called."""

    model_config = _OPEN

    name: str
    arguments: str | dict[str, Any]


class PastToolCall(BaseModel):
    """A tool call of an earlier answer."""

    model_config = _OPEN

    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    """A message; further fields are passed on to the chat template."""

    model_config = _OPEN

    role: Role
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[PastToolCall] | None = None
    tool_call_id: str | None = None


class Function(BaseModel):
    """A function that the model may call."""

    model_config = _OPEN

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A tool that the model may use."""

    model_config = _OPEN

    type: Literal["function"]
    function: Function


class ChatPromptFields(BaseModel):
    """What makes a prompt of a chat."""

    model_config = _OPEN

    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatRequest(ChatPromptFields, GenerationRequest):
    """A chat completion, with OpenAI's parameters and vLLM's."""

    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=1, le=INT32_MAX)
    reasoning_effort: str | None = Field(None, description="Passed on to the chat template.")
