"""A tokenizer service is lost: what it had goes on at another, or at the same one when it is back."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from gateway import resumption
from quire.packing import pack_int32, unpack_int32
from quire.v1 import tokenizer_pb2
from tests.gateway.conftest import API_KEY, RunningGateway, running_service
from tests.support.fake_tokenizer import Delta, FakeTokenizer, last, usage
from tests.support.until import until

Send = Callable[[Delta], None]
WORDS = ["Once", " upon", " a", " time"]


def word(number: int, sequence: int = 0) -> Delta:
    """The delta of one token of the story."""
    return Delta(sequence=sequence, text=WORDS[number], num_tokens=1, token_ids=pack_int32([number]))


def so_far(request: tokenizer_pb2.TextRequest) -> dict[int, tuple[list[int], bool]]:
    """Of each sequence that is resumed its tokens, and whether it has ended."""
    return {
        each.sequence: (unpack_int32(each.token_ids).tolist(), each.has_ended) for each in request.resumed
    }


async def half(request: tokenizer_pb2.TextRequest, send: Send) -> None:
    """The story's first half, and no more."""
    if request.stream:
        send(word(0))
        send(word(1))
    await asyncio.Event().wait()


async def rest(request: tokenizer_pb2.TextRequest, send: Send) -> None:
    """What is missing of the story."""
    for sequence in range(request.n):
        known, has_ended = so_far(request).get(sequence, ([], False))
        if has_ended:
            continue
        if not request.stream:
            send(last("".join(WORDS), sequence=sequence, num_tokens=4))
            continue
        for number in range(len(known), 3):
            send(word(number, sequence))
        end = {"token_ids": pack_int32([3]), "usage": usage(4)}
        send(last(WORDS[3], sequence=sequence, **end))


async def story(gateway: RunningGateway, under_way: asyncio.Event, **fields: object) -> list[str]:
    """The choices of a streamed answer; `under_way` is set once two chunks are there."""
    asked = {"model": "tiny", "prompt": "Tell", "stream": True, **fields}
    stream = await gateway.sdk.completions.create(**asked)  # type: ignore[call-overload]
    texts: dict[int, str] = {}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            assert not hasattr(choice, "token_ids") or choice.token_ids is None
        if len("".join(texts.values())) >= len("Once upon"):
            under_way.set()
    return [texts[index] for index in sorted(texts)]


async def begun(gateway: RunningGateway, **fields: object) -> asyncio.Task[list[str]]:
    """A story whose client has had its first half."""
    under_way = asyncio.Event()
    answer = asyncio.create_task(story(gateway, under_way, **fields))
    await under_way.wait()
    return answer


async def test_a_stream_goes_on_where_it_was(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = half
    answer = await begun(gateway)
    gateway.tokenizer.script = rest
    gateway.tokenizer.drop_sessions()
    assert await answer == ["".join(WORDS)]
    first, second = gateway.tokenizer.requests
    assert so_far(second) == {0: ([0, 1], False)}
    assert first.ledger_id == second.ledger_id != ""
    assert first.request_id == second.request_id


async def test_an_answer_of_one_piece_is_begun_again(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = half
    answer = asyncio.create_task(gateway.sdk.completions.create(model="tiny", prompt="Tell", n=2))
    await gateway.tokenizer.submitted.get()
    gateway.tokenizer.script = rest
    gateway.tokenizer.drop_sessions()
    assert [choice.text for choice in (await answer).choices] == ["".join(WORDS)] * 2


async def test_a_sequence_that_had_ended_is_not_asked_for_again(gateway: RunningGateway) -> None:
    async def one_of_two(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        await rest(tokenizer_pb2.TextRequest(n=1, stream=True), send)
        send(word(0, 1))
        await asyncio.Event().wait()

    gateway.tokenizer.script = one_of_two
    answer = await begun(gateway, n=2)
    (client,) = gateway.service.pool._clients.values()
    (live,) = client._live.values()
    await until(lambda: 1 in live._received)
    gateway.tokenizer.script = rest
    gateway.tokenizer.drop_sessions()
    assert await answer == ["".join(WORDS)] * 2
    assert so_far(gateway.tokenizer.requests[1]) == {0: ([0, 1, 2, 3], True), 1: ([0], False)}


async def test_another_service_goes_on_with_it(tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    other = FakeTokenizer()
    await other.start()
    both = {"tokenizers": (tokenizer.address, other.address)}
    async with running_service(tokenizer, tmp_path, both) as service:
        await until(lambda: service.pool.num_ready() == 2)
        tokenizer.script = other.script = half
        async with openai.AsyncOpenAI(
            base_url=f"http://{service.address}/v1", api_key=API_KEY, max_retries=0
        ) as sdk:
            gateway = RunningGateway(service, tokenizer, None, sdk)  # type: ignore[arg-type]
            under_way = [asyncio.Event() for _ in range(6)]
            answers = asyncio.gather(*(story(gateway, event) for event in under_way))
            await asyncio.gather(*(event.wait() for event in under_way))
            assert len(tokenizer.requests) == len(other.requests) == 3
            other.script = rest
            await tokenizer.stop()
            await until(lambda: len(other.requests) == 6)
            await other.stop()  # its first three, and those that moved, wait for it
            await until(lambda: service.pool.num_ready() == 0)
            again = FakeTokenizer(other.address)
            again.script = rest
            await again.start()
            assert await answers == [["".join(WORDS)]] * 6
            await again.stop()


async def test_who_leaves_meanwhile_is_forgotten(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = half
    answer = await begun(gateway)
    await gateway.tokenizer.stop()
    await until(lambda: gateway.service.pool.num_ready() == 0)
    assert gateway.service.pool.num_live() == 1
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)
    await until(lambda: gateway.service.pool.num_live() == 0)


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "RESUME_S", 0.05)


@pytest.mark.usefixtures("short_patience")
async def test_a_service_that_stays_away_is_one_retryable_error(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = half
    stream = await begun(gateway)
    whole = asyncio.create_task(gateway.sdk.completions.create(model="tiny", prompt="Hi"))
    await until(lambda: len(gateway.tokenizer.requests) == 2)
    await gateway.tokenizer.stop()
    with pytest.raises(openai.InternalServerError) as caught:
        await whole
    assert caught.value.status_code == 503
    assert caught.value.response.headers["Retry-After"]
    with pytest.raises(openai.APIError, match="connection to the tokenizer service was lost; try again"):
        await stream
    assert gateway.service.pool.num_live() == 0


async def test_a_deadline_that_passes_meanwhile_is_what_is_told(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = half
    answer = asyncio.create_task(
        gateway.sdk.completions.create(model="tiny", prompt="Hi", extra_body={"timeout": 0.5})
    )
    await gateway.tokenizer.submitted.get()
    await gateway.tokenizer.stop()
    with pytest.raises(openai.InternalServerError, match="deadline passed") as caught:
        await answer
    assert caught.value.status_code == 504


async def test_what_two_services_were_lost_with_is_not_tried_on_a_third(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = half
    stream = await begun(gateway)
    poison = asyncio.create_task(gateway.sdk.completions.create(model="tiny", prompt="Hi"))
    await until(lambda: len(gateway.tokenizer.requests) == 2)

    async def one_more(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        if request.stream:
            send(word(len(so_far(request)[0][0])))
        await asyncio.Event().wait()

    gateway.tokenizer.script = one_more
    gateway.tokenizer.drop_sessions()
    await until(lambda: len(gateway.tokenizer.requests) == 4)
    (client,) = gateway.service.pool._clients.values()
    await until(lambda: any(live._received and live._num_losses == 0 for live in client._live.values()))
    gateway.tokenizer.script = rest
    gateway.tokenizer.drop_sessions()
    with pytest.raises(openai.InternalServerError, match="try again"):
        await poison
    assert await stream == ["".join(WORDS)]


async def test_text_without_its_tokens_is_not_begun_again(gateway: RunningGateway) -> None:
    async def older(_: tokenizer_pb2.TextRequest, send: Send) -> None:
        send(Delta(text="Once upon", num_tokens=2))
        await asyncio.Event().wait()

    gateway.tokenizer.script = older
    stream = await begun(gateway)
    gateway.tokenizer.drop_sessions()
    with pytest.raises(openai.APIError, match="try again"):
        await stream
    assert len(gateway.tokenizer.requests) == 1


async def test_a_deadline_stays_where_it_was(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = half
    answer = await begun(gateway, extra_body={"timeout": 60})
    gateway.tokenizer.script = rest
    gateway.tokenizer.drop_sessions()
    assert await answer == ["".join(WORDS)]
    first, second = gateway.tokenizer.requests
    assert first.timeout_s == 60
    assert 0 < second.timeout_s < 60


async def test_token_ids_are_shown_to_who_asked_for_them(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = rest
    stream = await gateway.sdk.completions.create(
        model="tiny", prompt="Tell", stream=True, extra_body={"return_token_ids": True}
    )
    ids = [token async for chunk in stream for token in (chunk.choices[0].model_extra or {})["token_ids"]]
    assert ids == [0, 1, 2, 3]
