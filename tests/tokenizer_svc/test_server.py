"""The Tokenizer service over real sockets, in front of a real scheduler and a worker whose tokens are known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.instant_rows import expected_tokens
from benchmarks.instant_worker import InstantWorker, InstantWorkerSettings
from quire.packing import pack_int32, unpack_int32
from quire.rpc.channel import open_channel
from quire.service import Shutdown
from quire.v1 import tokenizer_pb2, tokenizer_pb2_grpc, types_pb2
from scheduler_svc.server import SchedulerServicer
from scheduler_svc.settings import SchedulerSettings
from tests.support.checkpoints import VOCAB_SIZE, checkpoint
from tokenizer_svc.server import TokenizerServicer
from tokenizer_svc.settings import TokenizerSettings
from tokenizer_svc.text_tokenizer import TextTokenizer

PROMPT = "Pages of a quire"


def made(cls: Any, **fields: Any) -> Any:
    """Settings without a command line."""
    defaults = {
        name: field.get_default() for name, field in cls.model_fields.items() if not field.is_required()
    }
    return cls.model_construct(**(defaults | fields))


@dataclass
class Stack:
    """The services, and a stub to the one under test."""

    stub: tokenizer_pb2_grpc.TokenizerAsyncStub
    tokenizer: TokenizerServicer
    scheduler: SchedulerServicer
    worker: InstantWorker
    directory: Path

    async def restart_scheduler(self) -> None:
        """End the scheduler's process, so to speak, and start another at the same address."""
        await self.scheduler.stop()
        self.scheduler = new_scheduler(self.directory)
        await self.scheduler.start()


def new_scheduler(directory: Path) -> SchedulerServicer:
    settings = made(
        SchedulerSettings,
        listen=f"unix:{directory}/scheduler",
        workers=(f"unix:{directory}/worker",),
        max_decode_steps=1,
    )
    return SchedulerServicer(settings, Shutdown())


@asynccontextmanager
async def running(directory: Path, *, step_us: float = 0.0, **fields: Any) -> AsyncIterator[Stack]:
    worker = InstantWorker(
        made(
            InstantWorkerSettings,
            listen=f"unix:{directory}/worker",
            vocab_size=VOCAB_SIZE,
            max_model_len=512,
            step_us=step_us,
        )
    )
    scheduler = new_scheduler(directory)
    settings = made(
        TokenizerSettings,
        listen=f"unix:{directory}/tokenizer",
        schedulers=(f"unix:{directory}/scheduler",),
        model=str(checkpoint()),
        **fields,
    )
    tokenizer = TokenizerServicer(settings, Shutdown())
    for service in (worker, scheduler, tokenizer):
        await service.start()
    async with open_channel(tokenizer.rpc.address) as channel:
        stack = Stack(tokenizer_pb2_grpc.TokenizerStub(channel), tokenizer, scheduler, worker, directory)
        try:
            await until_state(stack, types_pb2.SERVICE_STATE_READY)
            yield stack
        finally:
            await tokenizer.stop()
            await stack.scheduler.stop()
            await worker.stop()


async def until_state(stack: Stack, state: types_pb2.ServiceState.ValueType) -> None:
    while (await stack.stub.GetStatus(types_pb2.GetStatusRequest())).state != state:
        await asyncio.sleep(0.01)


def request(max_tokens: int = 20, **fields: Any) -> tokenizer_pb2.TextRequest:
    sampling = types_pb2.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    sampling.MergeFrom(fields.pop("sampling", types_pb2.SamplingParams()))
    return tokenizer_pb2.TextRequest(
        request_id="r", **({"text": PROMPT, "stream": True} | fields), sampling=sampling
    )


async def deltas(stack: Stack, asked: tokenizer_pb2.TextRequest) -> list[tokenizer_pb2.TextDelta]:
    return [delta async for delta in stack.stub.Generate(asked)]


def oracle(tokenizer: TextTokenizer, num_tokens: int) -> list[int]:
    return expected_tokens(tokenizer.encode(PROMPT, add_special_tokens=True), num_tokens, VOCAB_SIZE)


async def test_deltas_put_together_are_the_decoded_tokens(tmp_path: Path, byte_level: TextTokenizer) -> None:
    async with running(tmp_path) as stack:
        found = await deltas(stack, request(return_token_ids=True))
    tokens = oracle(byte_level, 20)
    assert "".join(delta.text for delta in found) == byte_level.decode(tokens, skip_special_tokens=True)
    assert [token for delta in found for token in unpack_int32(delta.token_ids).tolist()] == tokens
    assert sum(delta.num_tokens for delta in found) == 20
    assert found[0].prompt_tokens == found[-1].usage.prompt_tokens > 0
    assert (found[-1].finish_reason, found[-1].usage.completion_tokens) == (
        types_pb2.FINISH_REASON_LENGTH,
        20,
    )
    assert all(not delta.finish_reason for delta in found[:-1])


async def test_without_stream_each_sequence_is_one_delta(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        found = await deltas(stack, request(n=3, stream=False))
    assert sorted(delta.sequence for delta in found) == [0, 1, 2]
    assert all(delta.finish_reason == types_pb2.FINISH_REASON_LENGTH for delta in found)


async def test_a_stop_string_ends_its_sequence_with_an_exact_count(
    tmp_path: Path, byte_level: TextTokenizer
) -> None:
    tokens = oracle(byte_level, 60)
    whole = byte_level.decode(tokens, skip_special_tokens=True)
    stop = whole[30:34]
    before = whole[: whole.index(stop)]
    async with running(tmp_path) as stack:
        found = await deltas(stack, request(60, stop=[stop]))
        again = await deltas(stack, request(60, stop=[stop], include_stop_str_in_output=True))
        while stack.worker.rows.used.any():
            await asyncio.sleep(0.01)
    assert "".join(delta.text for delta in found) == before
    assert "".join(delta.text for delta in again) == before + stop
    last = found[-1]
    assert (last.finish_reason, last.stop_string) == (types_pb2.FINISH_REASON_STOP, stop)
    needed = next(n for n in range(61) if stop in byte_level.decode(tokens[:n], skip_special_tokens=True))
    assert last.usage.completion_tokens == needed
    assert last.usage.computed_tokens >= last.usage.prompt_tokens + needed - 1


async def test_a_stop_token_counts_and_has_no_text(tmp_path: Path, byte_level: TextTokenizer) -> None:
    tokens = oracle(byte_level, 20)
    stop = tokens[7]
    end = tokens.index(stop)
    asked = request(sampling=types_pb2.SamplingParams(stop_token_ids=pack_int32([stop])))
    async with running(tmp_path) as stack:
        found = await deltas(stack, asked)
    shown = byte_level.decode(tokens[:end], skip_special_tokens=True)
    assert "".join(delta.text for delta in found) == shown
    assert (found[-1].stop_token_id, found[-1].usage.completion_tokens) == (stop, end + 1)


async def test_echo_and_log_probabilities(tmp_path: Path, byte_level: TextTokenizer) -> None:
    asked = request(4, echo=True, sampling=types_pb2.SamplingParams(logprobs=2))
    async with running(tmp_path) as stack:
        found = await deltas(stack, asked)
    assert "".join(delta.text for delta in found).startswith(PROMPT)
    logprobs = [item for delta in found for item in delta.logprobs]
    assert [item.token_id for item in logprobs] == oracle(byte_level, 4)
    assert all(len(item.top) == 2 and item.token_bytes for item in logprobs)


async def test_a_request_goes_on_when_the_scheduler_is_back(
    tmp_path: Path, byte_level: TextTokenizer
) -> None:
    async with running(tmp_path, step_us=2000) as stack:
        found: list[tokenizer_pb2.TextDelta] = []
        async for delta in stack.stub.Generate(request(200, return_token_ids=True)):
            found.append(delta)
            if len(found) == 5:
                await stack.restart_scheduler()
    tokens = [token for delta in found for token in unpack_int32(delta.token_ids).tolist()]
    assert tokens == oracle(byte_level, 200)
    assert "".join(delta.text for delta in found) == byte_level.decode(tokens, skip_special_tokens=True)
    assert found[-1].usage.completion_tokens == 200


async def test_a_scheduler_that_stays_away_is_one_clear_error(tmp_path: Path) -> None:
    async with running(tmp_path, step_us=2000, resume_s=0.05) as stack:
        call = stack.stub.Generate(request(400))
        await anext(aiter(call))
        await stack.scheduler.stop()
        with pytest.raises(grpc.aio.AioRpcError, match="try again") as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await stack.restart_scheduler()
        await until_state(stack, types_pb2.SERVICE_STATE_READY)
        assert await deltas(stack, request(2))


async def test_a_session_carries_many_requests_and_frees_them_when_it_ends(tmp_path: Path) -> None:
    async with running(tmp_path, step_us=1000) as stack:
        call = stack.stub.Session()
        message = await call.read()
        assert message.announcement.state == types_pb2.SERVICE_STATE_READY
        for handle, max_tokens in ((1, 3), (2, 400), (3, 400)):
            submit = tokenizer_pb2.TokenizerSessionRequest.Submit(handle=handle, request=request(max_tokens))
            await call.write(tokenizer_pb2.TokenizerSessionRequest(submit=submit))
        bad = tokenizer_pb2.TokenizerSessionRequest.Submit(handle=4, request=request(text=""))
        await call.write(tokenizer_pb2.TokenizerSessionRequest(submit=bad))
        ends: dict[int, tokenizer_pb2.TextDelta] = {}
        while not {1, 4} <= ends.keys():
            ends |= {delta.handle: delta for delta in (await call.read()).deltas if delta.finish_reason}
        assert ends[4].error.param == "prompt"
        assert ends[1].usage.completion_tokens == 3
        cancel = tokenizer_pb2.TokenizerSessionRequest.Cancel(handle=2)
        await call.write(tokenizer_pb2.TokenizerSessionRequest(cancel=cancel))
        while int(stack.worker.rows.used.sum()) != 1:
            await call.read()
        call.cancel()
        while stack.worker.rows.used.any():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": ""}, "prompt"),
        ({"text": "x " * 3000}, "prompt"),
        ({"text": None, "token_ids": b"abc"}, "prompt"),
        ({"text": None, "token_ids": pack_int32([VOCAB_SIZE])}, "prompt"),
        ({"text": None}, "prompt"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"n": 2**31}, "n"),
        ({"resumed": [tokenizer_pb2.ResumedText(sequence=1)]}, "resumed"),
        ({"resumed": [tokenizer_pb2.ResumedText()] * 2}, "resumed"),
        ({"resumed": [tokenizer_pb2.ResumedText(has_ended=True)]}, "resumed"),
        ({"resumed": [tokenizer_pb2.ResumedText(token_ids=b"abc")]}, "resumed"),
        ({"resumed": [tokenizer_pb2.ResumedText(token_ids=pack_int32([VOCAB_SIZE]))]}, "resumed"),
        ({"resumed": [tokenizer_pb2.ResumedText(token_ids=pack_int32([1] * 21))]}, "resumed"),
        ({"sampling": types_pb2.SamplingParams(top_p=-1)}, "top_p"),
        ({"sampling": types_pb2.SamplingParams(stop_token_ids=b"\0")}, "stop_token_ids"),
    ],
)
async def test_a_bad_request_names_its_field(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async with running(tmp_path) as stack:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await deltas(stack, request(**fields))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(caught.value.trailing_metadata() or ())["quire-error-param-bin"] == param.encode()
        assert len(await deltas(stack, request(2))) >= 1


async def test_tokens_and_templates_without_generating(tmp_path: Path, byte_level: TextTokenizer) -> None:
    chat = tokenizer_pb2.ChatPrompt(messages_json='[{"role": "user", "content": "Hi"}]')
    async with running(tmp_path) as stack:
        text = (await stack.stub.RenderChat(tokenizer_pb2.RenderChatRequest(chat=chat))).text
        ids = (await stack.stub.Tokenize(tokenizer_pb2.TokenizeRequest(chat=chat))).token_ids
        back = (
            await stack.stub.Detokenize(
                tokenizer_pb2.DetokenizeRequest(token_ids=ids, skip_special_tokens=False)
            )
        ).text
    assert text == back == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert unpack_int32(ids).tolist() == byte_level.encode(text, add_special_tokens=False)


async def test_a_drain_refuses_new_requests_and_finishes_those_it_has(tmp_path: Path) -> None:
    async with running(tmp_path, step_us=1000) as stack:
        call = stack.stub.Generate(request(100))
        await anext(aiter(call))
        drained = asyncio.create_task(stack.tokenizer.drain())
        await until_state(stack, types_pb2.SERVICE_STATE_DRAINING)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await deltas(stack, request(2))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        rest = [delta async for delta in call]
        assert rest[-1].finish_reason == types_pb2.FINISH_REASON_LENGTH
        await drained


async def test_what_a_session_brings_before_it_has_heard_of_a_drain_is_served(tmp_path: Path) -> None:
    async with running(tmp_path, step_us=1000) as stack:
        session, running_call = stack.stub.Session(), stack.stub.Generate(request(200))
        await session.read()
        await anext(aiter(running_call))
        drained = asyncio.create_task(stack.tokenizer.drain())
        await until_state(stack, types_pb2.SERVICE_STATE_DRAINING)
        submit = tokenizer_pb2.TokenizerSessionRequest.Submit(handle=1, request=request(2))
        await session.write(tokenizer_pb2.TokenizerSessionRequest(submit=submit))
        states, found = [], []
        while not any(delta.finish_reason for delta in found):
            message = await session.read()
            states += [message.announcement.state] if message.HasField("announcement") else []
            found += message.deltas
        assert (set(states), found[-1].finish_reason) == (
            {types_pb2.SERVICE_STATE_DRAINING},
            types_pb2.FINISH_REASON_LENGTH,
        )
        running_call.cancel()
        await drained


async def test_a_long_prompt_is_prepared_in_a_thread_and_a_short_one_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from tokenizer_svc import generation

    threads: list[bool] = []
    prepare = generation.prepare

    def noted(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return prepare(*arguments, **options)

    monkeypatch.setattr(generation, "prepare", noted)
    async with running(tmp_path) as stack:
        await deltas(stack, request(1))
        with pytest.raises(grpc.aio.AioRpcError, match="context length"):
            await deltas(stack, request(1, text="long " * 100_000))
    assert threads == [True, False]


async def test_text_that_the_parser_held_back_is_shown_when_a_stop_string_ends_the_answer(
    tmp_path: Path, byte_level: TextTokenizer
) -> None:
    """White space may begin the end of an answer, so the parser waits with it; a stop string settles the matter."""
    async with running(tmp_path) as stack:
        # Some chat whose answer has white space before anything like markup.
        for number in range(100):
            chat = tokenizer_pb2.ChatPrompt(messages_json=f'[{{"role": "user", "content": "{number}"}}]')
            prompt = (await stack.stub.Tokenize(tokenizer_pb2.TokenizeRequest(chat=chat))).token_ids
            tokens = expected_tokens(unpack_int32(prompt).tolist(), 200, VOCAB_SIZE)
            whole = byte_level.decode(tokens, skip_special_tokens=False)
            at = whole.find(" ") + 1
            if 0 < at < len(whole) - 3 and "<" not in whole[: at + 3]:
                break
        stop = whole[at : at + 3]
        asked = request(
            200, text=None, chat=chat, parse_response=True, stop=[stop], skip_special_tokens=False
        )
        found = await deltas(stack, asked)
    assert "".join(delta.text for delta in found) == whole[: whole.index(stop)]


async def test_closing_the_sending_side_ends_the_session_and_its_requests(tmp_path: Path) -> None:
    async with running(tmp_path, step_us=1000) as stack:
        call = stack.stub.Session()
        submit = tokenizer_pb2.TokenizerSessionRequest.Submit(handle=1, request=request(400))
        await call.write(tokenizer_pb2.TokenizerSessionRequest(submit=submit))
        while not (await call.read()).deltas:
            pass
        await call.done_writing()
        while message := await call.read():
            assert not any(delta.finish_reason for delta in message.deltas)
        assert await call.code() == grpc.StatusCode.OK
        while (await stack.stub.GetStatus(types_pb2.GetStatusRequest())).requests_running:
            await asyncio.sleep(0.01)
