"""The one submit path: text requests of sessions and of `Generate` become live requests at the scheduler."""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from opentelemetry.trace import Span

from quire import telemetry
from quire.errors import InvalidRequest, NotReady, QuireError
from quire.packing import pack_int32
from quire.v1 import scheduler_pb2, tokenizer_pb2, types_pb2
from tokenizer_svc import metrics
from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.live_request import DeltaSink, LiveRequest
from tokenizer_svc.prompt import Prompt, check_options, is_short, prepare
from tokenizer_svc.response_parser import AnswerParser, response_template
from tokenizer_svc.schedulers import Schedulers
from tokenizer_svc.sequence_text import SequenceText
from tokenizer_svc.stop_strings import StopStrings
from tokenizer_svc.text_tokenizer import TextTokenizer

_MAX_N = 1024
# To read fewer than these again takes a millisecond at most.
_MANY_TOKENS = 128
Result = TypeVar("Result")


class Generation:
    """Prepares prompts, off the event loop where they are long, and submits them."""

    def __init__(self, schedulers: Schedulers, *, threads: int, max_prompt_chars: int) -> None:
        self._schedulers = schedulers
        self._max_prompt_chars = max_prompt_chars
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._tokenizer: TextTokenizer | None = None
        self._response_template: dict[str, Any] | None = None

    @property
    def tokenizer(self) -> TextTokenizer:
        """The checkpoint's tokenizer. Raises NotReady while it loads."""
        if self._tokenizer is None:
            raise NotReady("the tokenizer is loading", retry_after_s=1.0)
        return self._tokenizer

    @property
    def loaded(self) -> bool:
        """Whether the tokenizer is there."""
        return self._tokenizer is not None

    @property
    def model(self) -> types_pb2.ModelDescription | None:
        """The served model, once the scheduler has said it."""
        return self._schedulers.model

    def use(self, tokenizer: TextTokenizer) -> None:
        """The tokenizer has loaded."""
        self._response_template = response_template(tokenizer)
        self._tokenizer = tokenizer

    async def prepare(self, request: tokenizer_pb2.TextRequest) -> Prompt:
        """The prompt's tokens. Raises InvalidRequest or NotReady."""
        tokenizer, model = self.tokenizer, self.model
        if model is None:
            raise NotReady("no worker has been connected yet", retry_after_s=1.0)
        limits = {
            "max_model_len": model.max_model_len,
            "vocab_size": model.vocab_size,
            "max_chars": self._max_prompt_chars,
        }
        return await self.call(is_short(request), lambda: prepare(tokenizer, request, **limits))

    async def call(self, is_cheap: bool, function: Callable[[], Result]) -> Result:
        """Run `function` here if it is cheap, else in a thread: others' tokens must not wait for a long prompt."""
        if is_cheap:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def submit(self, request: tokenizer_pb2.TextRequest, new_delta: DeltaSink) -> LiveRequest:
        """Start a request; its deltas come through `new_delta`. Raises QuireError."""
        started, started_ns = time.monotonic(), time.time_ns()
        check_options(request)
        if request.n > _MAX_N:
            raise InvalidRequest(f"n is at most {_MAX_N}", param="n")
        span = telemetry.start_span("tokenizer", request.trace, start_time_ns=started_ns)
        try:
            prompt = await self.prepare(request)
            metrics.encode_seconds.observe(time.monotonic() - started)
            metrics.tokens_in.inc(len(prompt.token_ids))
            _trace_tokenize(span, started_ns, len(prompt.token_ids))
            num_resumed = sum(len(resumed.token_ids) // 4 for resumed in request.resumed)
            live = await self.call(
                num_resumed < _MANY_TOKENS, lambda: self._live_request(request, prompt, new_delta, span)
            )
            live.end_stopped()
            if not live.is_over:
                self._schedulers.submit(live)
        except QuireError as error:
            metrics.requests_refused.labels(types_pb2.ErrorCode.Name(error.code)).inc()
            span.set_attribute(telemetry.ERROR_TYPE, type(error).__name__)
            span.end()
            raise
        metrics.requests.inc()
        metrics.requests_running.set(self._schedulers.num_live)
        return live

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _live_request(
        self, request: tokenizer_pb2.TextRequest, prompt: Prompt, new_delta: DeltaSink, span: Span
    ) -> LiveRequest:
        sampling = types_pb2.SamplingParams()
        sampling.CopyFrom(request.sampling)
        if not sampling.HasField("seed"):
            # Chosen here and not by the scheduler, so that a resumed request goes on with the same draws.
            sampling.seed = int.from_bytes(os.urandom(8), "little")
        trace = telemetry.trace_context(span) if telemetry.enabled() else request.trace
        token_request = scheduler_pb2.TokenRequest(
            request_id=request.request_id,
            ledger_id=request.ledger_id or os.urandom(16).hex(),
            prompt_token_ids=pack_int32(prompt.token_ids),
            sampling=sampling,
            n=request.n,
            tenant=request.tenant,
            priority=request.priority,
            cache_salt=request.cache_salt,
            public_prefix_tokens=request.public_prefix_tokens,
            trace=trace,
        )
        if request.HasField("tenant_policy"):
            token_request.tenant_policy.CopyFrom(request.tenant_policy)
        if request.HasField("timeout_s"):
            token_request.timeout_s = request.timeout_s
        sequences = [self._sequence(index, request, prompt) for index in range(max(1, request.n))]
        live = LiveRequest(
            token_request,
            sequences,
            self.tokenizer,
            new_delta,
            stream=request.stream,
            include_stop=request.include_stop_str_in_output,
            span=span,
        )
        for resumed in request.resumed:
            live.resume(resumed)
        return live

    def _sequence(self, index: int, request: tokenizer_pb2.TextRequest, prompt: Prompt) -> SequenceText:
        tokenizer = self.tokenizer
        parser = None
        if (
            request.parse_response
            and request.WhichOneof("prompt") == "chat"
            and self._response_template is not None
        ):
            parser = AnswerParser(self._response_template, prompt.text or "", prompt.tools)
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        opening = ""
        if request.echo:
            text = prompt.text
            opening = tokenizer.decode(prompt.token_ids, skip_special_tokens=skip) if text is None else text
        return SequenceText(
            index,
            # The marks that a response template looks for are often special tokens.
            Detokenizer(tokenizer, prompt.token_ids, skip_special_tokens=skip and parser is None),
            stops=StopStrings(request.stop, include=request.include_stop_str_in_output)
            if request.stop
            else None,
            parser=parser,
            opening=opening,
            return_token_ids=request.return_token_ids,
            can_resume=request.stream,
        )


def _trace_tokenize(span: Span, started_ns: int, num_tokens: int) -> None:
    if telemetry.enabled():
        attributes = {telemetry.USAGE_INPUT_TOKENS: num_tokens}
        parent = telemetry.trace_context(span)
        telemetry.start_span("tokenize", parent, start_time_ns=started_ns, attributes=attributes).end()
