"""How much one request may ask for."""

from collections.abc import Sized
from dataclasses import dataclass

from gateway.schemas.chat import ChatPromptFields, ChatRequest
from gateway.schemas.completions import CompletionRequest
from gateway.schemas.generation import GenerationRequest
from quire.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds, of the settings of the same names."""

    max_n: int
    max_prompts: int
    max_messages: int
    max_stop: int
    max_logprobs: int
    max_logit_bias: int
    max_request_s: float

    def check_chat(self, request: ChatRequest) -> None:
        """Raise InvalidRequest, naming the parameter, if `request` asks for too much."""
        self._check_shared(request)
        self.check_prompt(request)
        self._check_number("top_logprobs", request.top_logprobs, self.max_logprobs)

    def check_prompt(self, chat: ChatPromptFields) -> None:
        """Raise InvalidRequest, naming the parameter, if `chat` is too long."""
        self._check_length("messages", chat.messages, self.max_messages)

    def check_completion(self, request: CompletionRequest) -> None:
        """Raise InvalidRequest, naming the parameter, if `request` asks for too much."""
        self._check_shared(request)
        self._check_number("best_of", request.best_of, self.max_n)
        self._check_number("logprobs", request.logprobs, self.max_logprobs)
        self._check_length("prompt", request.prompts, self.max_prompts)

    def _check_shared(self, request: GenerationRequest) -> None:
        self._check_number("n", request.n, self.max_n)
        self._check_length("stop", request.stop_strings, self.max_stop)
        self._check_length("stop_token_ids", request.stop_token_ids or (), self.max_stop)
        self._check_length("logit_bias", request.logit_bias or (), self.max_logit_bias)
        if "" in request.stop_strings:
            raise InvalidRequest("stop: an empty string would stop every answer at once", param="stop")

    def _check_number(self, param: str, value: int | None, limit: int) -> None:
        if value is not None and value > limit:
            raise InvalidRequest(f"{param} must be at most {limit}, not {value}", param=param)

    def _check_length(self, param: str, value: Sized, limit: int) -> None:
        if len(value) > limit:
            raise InvalidRequest(f"{param} may have at most {limit} entries, not {len(value)}", param=param)
