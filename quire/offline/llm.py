"""`LLM`: a model in this script, on services of its own."""

import json
import queue
import sys
import uuid
import weakref
from collections.abc import Mapping, Sequence
from numbers import Integral
from types import TracebackType
from typing import Any, Self, cast

from tqdm.auto import tqdm

from quire.errors import InvalidRequest
from quire.local import demo_model
from quire.model_files import resolve_model
from quire.offline.background import Background
from quire.offline.outputs import RequestOutput, SequenceOutput
from quire.offline.sampling_params import SamplingParams
from quire.offline.text_session import Deltas
from quire.packing import pack_int32
from quire.v1 import tokenizer_pb2

Messages = Sequence[Mapping[str, object]]
Prompt = str | Sequence[int]
Params = SamplingParams | Sequence[SamplingParams] | None

_TENANT = "offline"


class LLM:
    """Generates from prompts and chats, many at once.

    A tokenizer service, a scheduler and a worker run as processes of their own, as under `quire serve`, until `close`
    (or the end of the `with` block, or of this process). May be called from several threads, and from under a running
    event loop, which it blocks meanwhile.
    """

    def __init__(
        self,
        model: str = "",
        *,
        progress: bool = True,
        scheduler: Mapping[str, object] | None = None,
        **worker: object,
    ) -> None:
        """Start the services and load `model`: a checkpoint directory or hub id; by default the demo model.

        Further keywords are settings of the worker, `scheduler` holds settings of the scheduler (docs/settings.md), for
        example `LLM(model, max_model_len=4096, kv_cache_memory="8GiB")`. Raises NotFound for a model that cannot be
        had, and LaunchError, with the service's own words, where one cannot start.
        """
        source = model or str(demo_model())
        # Here and now, so that the hub's own progress is seen, and what fails fails before anything has started.
        resolve_model(source, weights=worker.get("load_format") != "dummy")
        self._progress = progress
        self._background = Background()
        self._close = weakref.finalize(self, self._background.stop)
        try:
            say = _say if progress else _say_nothing
            self._session = self._background.start(source, worker=worker, scheduler=scheduler or {}, say=say)
        except BaseException:
            self.close()
            raise

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, *, progress: bool | None = None
    ) -> list[RequestOutput]:
        """Continue each prompt: a text, or token ids; one, or a list of them. `params` are of all, or one for each.

        Raises the first prompt's error (InvalidRequest and its kin) after giving up the others.
        """
        asked = _as_list(prompts)
        requests = [_new_request() for _ in asked]
        for request, prompt in zip(requests, asked, strict=True):
            if isinstance(prompt, str):
                request.text = prompt
            else:
                request.token_ids = _packed(prompt)
        kept = [prompt if isinstance(prompt, str) else list(prompt) for prompt in asked]
        return self._run(kept, requests, params, progress)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: Params = None,
        *,
        tools: Sequence[Mapping[str, object]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, object] | None = None,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several, in OpenAI's message format, by the checkpoint's chat template.

        The text is the model's own: reasoning and tool calls are not split off. Raises as `generate`.
        """
        chats = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        requests = [_new_request() for _ in chats]
        for request, chat in zip(requests, chats, strict=True):
            request.chat.CopyFrom(
                tokenizer_pb2.ChatPrompt(
                    messages_json=json.dumps(chat),
                    tools_json=json.dumps(tools) if tools else "",
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    template_kwargs_json=json.dumps(chat_template_kwargs) if chat_template_kwargs else "",
                )
            )
        return self._run([list(chat) for chat in chats], requests, params, progress)

    def close(self) -> None:
        """Stop the services; calling again does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        prompts: list[Any],
        requests: list[tokenizer_pb2.TextRequest],
        params: Params,
        progress: bool | None,
    ) -> list[RequestOutput]:
        if not self._close.alive:
            raise InvalidRequest("this LLM was closed")
        every = _params_of_each(params, len(requests))
        for request, own in zip(requests, every, strict=True):
            own.fill(request)
        ended: queue.SimpleQueue[Deltas | None] = queue.SimpleQueue()
        future = self._background.submit(self._session.generate(requests, ended.put))
        future.add_done_callback(lambda _: ended.put(None))
        try:
            _show(ended, len(requests), disable=not (self._progress if progress is None else progress))
        except BaseException:  # Ctrl-C: what was asked for runs no longer
            future.cancel()
            raise
        return [
            _output(prompt, deltas, with_logprobs=own.logprobs is not None)
            for prompt, deltas, own in zip(prompts, future.result(), every, strict=True)
        ]


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt is a text or a list of integers; several are a list of those."""
    if isinstance(prompts, str):
        return [prompts]
    is_one = len(prompts) > 0 and all(isinstance(token, Integral) for token in prompts)
    return cast("list[Prompt]", [prompts] if is_one else list(prompts))


def _packed(prompt: Sequence[int]) -> bytes:
    try:
        return pack_int32(prompt)
    except (OverflowError, ValueError, TypeError) as error:
        raise InvalidRequest(f"a prompt is neither text nor token ids: {error}", param="prompt") from None


def _new_request() -> tokenizer_pb2.TextRequest:
    return tokenizer_pb2.TextRequest(request_id=uuid.uuid4().hex, tenant=_TENANT, return_token_ids=True)


def _params_of_each(params: Params, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequest(f"{len(params)} sampling parameters for {count} prompts")
    return list(params)


def _show(ended: "queue.SimpleQueue[Deltas | None]", count: int, *, disable: bool) -> None:
    """A progress bar that moves with each prompt's end, until nothing more will come."""
    tokens = 0
    with tqdm(total=count, unit=" prompts", disable=disable, dynamic_ncols=True) as bar:
        while (deltas := ended.get()) is not None:
            tokens += sum(delta.usage.completion_tokens for delta in deltas)
            elapsed_s = bar.format_dict["elapsed"]
            if elapsed_s:
                bar.set_postfix_str(f"{tokens / elapsed_s:,.0f} tokens/s", refresh=False)
            bar.update()


def _output(prompt: Any, deltas: Deltas, *, with_logprobs: bool) -> RequestOutput:
    return RequestOutput(
        prompt=prompt,
        outputs=[SequenceOutput.of(delta, with_logprobs=with_logprobs) for delta in deltas],
        num_prompt_tokens=deltas[0].usage.prompt_tokens,
        num_cached_tokens=deltas[0].usage.cached_tokens,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say_nothing(line: str) -> None:
    pass
