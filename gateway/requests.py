"""From the API's parameters to the messages that the tokenizer service takes."""

from pydantic_core import to_json

from gateway.schemas.chat import ChatPromptFields, ChatRequest
from gateway.schemas.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from gateway.schemas.generation import INT32_MAX, GenerationRequest
from quire.errors import InvalidRequest
from quire.packing import pack_float32, pack_int32
from quire.v1 import tokenizer_pb2, types_pb2


def chat_request(request: ChatRequest) -> tokenizer_pb2.TextRequest:
    """The request of a chat completion, without what names it. Raises InvalidRequest."""
    _check_tool_choice(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    text_request = _text_request(request)
    prompt = chat_prompt(request)
    if request.tool_choice == "none":
        prompt.tools_json = ""  # what the model is not told of, it does not call
    if request.reasoning_effort is not None:
        variables = {"reasoning_effort": request.reasoning_effort, **(request.chat_template_kwargs or {})}
        prompt.template_kwargs_json = _json(variables)
    text_request.chat.CopyFrom(prompt)
    text_request.parse_response = True
    sampling = text_request.sampling
    max_tokens = request.max_completion_tokens or request.max_tokens
    if max_tokens is not None:
        sampling.max_tokens = max_tokens
    if request.logprobs:
        sampling.logprobs = request.top_logprobs or 0
    return text_request


def completion_requests(request: CompletionRequest) -> list[tokenizer_pb2.TextRequest]:
    """One request for each prompt of a completion, without what names them. Raises InvalidRequest."""
    if request.echo and request.logprobs is not None:
        raise InvalidRequest("echo together with logprobs is not supported: prompts have none", param="echo")
    _check_best_of(request)
    shared = _text_request(request)
    shared.n = request.num_computed
    shared.echo = bool(request.echo)
    shared.sampling.max_tokens = request.max_tokens or DEFAULT_MAX_TOKENS
    if request.logprobs is not None:
        shared.sampling.logprobs = request.logprobs
    elif request.selects:
        shared.sampling.logprobs = 0  # those of the chosen tokens, to choose by
    if request.add_special_tokens is not None:
        shared.add_special_tokens = request.add_special_tokens
    text_requests = []
    for prompt in request.prompts:
        text_request = tokenizer_pb2.TextRequest()
        text_request.CopyFrom(shared)
        if isinstance(prompt, str):
            text_request.text = prompt
        else:
            text_request.token_ids = pack_int32(prompt)
        text_requests.append(text_request)
    return text_requests


def chat_prompt(fields: ChatPromptFields) -> tokenizer_pb2.ChatPrompt:
    """The chat as the template will see it: messages and tools go on as they came. Raises InvalidRequest."""
    if fields.continue_final_message and fields.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt cannot both be true",
            param="continue_final_message",
        )
    prompt = tokenizer_pb2.ChatPrompt(
        messages_json=_json([message.model_dump(exclude_unset=True) for message in fields.messages]),
        continue_final_message=bool(fields.continue_final_message),
    )
    if fields.tools:
        prompt.tools_json = _json([tool.model_dump(exclude_unset=True) for tool in fields.tools])
    if fields.add_generation_prompt is not None:
        prompt.add_generation_prompt = fields.add_generation_prompt
    elif fields.continue_final_message:
        prompt.add_generation_prompt = False
    if fields.chat_template_kwargs:
        prompt.template_kwargs_json = _json(fields.chat_template_kwargs)
    return prompt


def _text_request(request: GenerationRequest) -> tokenizer_pb2.TextRequest:
    text_request = tokenizer_pb2.TextRequest(
        sampling=_sampling(request),
        n=request.num_choices,
        stop=request.stop_strings,
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        stream=bool(request.stream),
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        public_prefix_tokens=request.public_prefix_tokens or 0,
        return_token_ids=bool(request.return_token_ids),
    )
    if request.skip_special_tokens is not None:
        text_request.skip_special_tokens = request.skip_special_tokens
    if request.timeout is not None:
        text_request.timeout_s = request.timeout
    return text_request


def _sampling(request: GenerationRequest) -> types_pb2.SamplingParams:
    sampling = types_pb2.SamplingParams(
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        min_tokens=request.min_tokens or 0,
        stop_token_ids=pack_int32(request.stop_token_ids or []),
        ignore_eos=bool(request.ignore_eos),
    )
    if request.temperature is not None:
        sampling.temperature = request.temperature
    if request.top_p is not None:
        sampling.top_p = request.top_p
    if request.repetition_penalty is not None:
        sampling.repetition_penalty = request.repetition_penalty
    if request.seed is not None:
        sampling.seed = request.seed % 2**64
    if request.logit_bias:
        token_ids = [int(key) for key in request.logit_bias]
        if max(token_ids) > INT32_MAX:
            raise InvalidRequest(f"logit_bias: no token has the id {max(token_ids)}", param="logit_bias")
        sampling.logit_bias_token_ids = pack_int32(token_ids)
        sampling.logit_bias_values = pack_float32(list(request.logit_bias.values()))
    return sampling


def _check_best_of(request: CompletionRequest) -> None:
    if request.num_computed < request.num_choices:
        raise InvalidRequest(
            f"best_of is {request.best_of}, less than n, which is {request.num_choices}", param="best_of"
        )
    if request.selects and request.stream:
        raise InvalidRequest(
            "best_of over n cannot be streamed: which choices are best is known at their end", param="best_of"
        )


def _check_tool_choice(request: ChatRequest) -> None:
    if request.tool_choice in (None, "none"):
        return
    if request.tool_choice != "auto":
        raise InvalidRequest(
            "tool_choice must be 'none' or 'auto': this server cannot force a call", param="tool_choice"
        )
    if not request.tools:
        raise InvalidRequest("tool_choice needs tools", param="tool_choice")


def _json(value: object) -> str:
    return to_json(value, inf_nan_mode="null").decode()
