"""A request's body: bytes, JSON, a schema, limits, and the message that the tokenizer service gets."""

import json

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import Message

from gateway.bodies import read_json
from gateway.errors import ApiError, describe
from gateway.limits import Limits
from gateway.requests import chat_prompt, chat_request, completion_requests
from gateway.schemas.chat import ChatMessage, ChatRequest
from gateway.schemas.completions import CompletionRequest
from gateway.schemas.tokens import DetokenizeRequest, TokenizeChatRequest, TokenizeRequest
from gateway.schemas.unsupported import CHAT_FIELDS, COMPLETION_FIELDS, refuse_unsupported
from quire.errors import QuireError
from tests.fuzz.pieces import finish

WORDS = sorted(
    {*ChatRequest.model_fields, *CompletionRequest.model_fields, *ChatMessage.model_fields, *CHAT_FIELDS}
    | {
        "function",
        "arguments",
        "parameters",
        "description",
        "text",
        "type",
        "user",
        "assistant",
        "tool",
        "system",
    }
    | {"auto", "none", "tokens", "prompt", "include_usage", "continuous_usage_stats", "50256"}
)
_LIMITS = Limits(
    max_n=8, max_prompts=8, max_messages=8, max_stop=4, max_logprobs=20, max_logit_bias=8, max_request_s=600.0
)


def seeds() -> list[bytes]:
    """One of each kind."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    documents = [
        {"messages": messages, "tools": [tool], "tool_choice": "auto", "stream": True, "logprobs": True},
        {"messages": messages, "seed": -1, "logit_bias": {"5": -100}, "stop": ["a"], "top_logprobs": 2},
        {"prompt": ["a", "b"], "n": 2, "best_of": 3, "logprobs": 1, "temperature": 0.5, "stop": "x"},
        {"prompt": [[1, 2], [3]], "max_tokens": 5, "stop_token_ids": [1], "echo": True, "top_k": -1},
        {"tokens": [1, 2]},
    ]
    return [json.dumps(document).encode() for document in documents]


def run(data: bytes) -> None:
    """Each endpoint takes it, or refuses it with a 4xx that can be sent."""
    for model in (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
        try:
            _take(finish(read_json(_request(data), model)))
        except (ApiError, QuireError, ValidationError) as error:
            described = describe(error)
            assert 400 <= described.kind.status < 500, described.message
            assert described.message
            assert json.loads(described.body())["error"]["message"]


def _take(request: BaseModel) -> None:
    if isinstance(request, ChatRequest):
        refuse_unsupported(request.model_extra, CHAT_FIELDS)
        _LIMITS.check_chat(request)
        made = [chat_request(request)]
    elif isinstance(request, CompletionRequest):
        refuse_unsupported(request.model_extra, COMPLETION_FIELDS)
        _LIMITS.check_completion(request)
        made = completion_requests(request)
    elif isinstance(request, TokenizeRequest):
        made = [chat_prompt(request.root)] if isinstance(request.root, TokenizeChatRequest) else []
    else:
        made = []
    for message in made:
        message.SerializeToString()


def _request(data: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": data, "more_body": False}

    return Request({"type": "http", "headers": []}, receive)
