"""Who waits, in which order, for how long, and who is refused: through the SDK, with one row for everybody."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from openai.types import Completion

from tests.support.checkpoints import checkpoint
from tests.support.fleet import Fleet, running_fleet
from tests.support.redis_server import RedisServer
from tests.support.server import API_KEY

pytestmark = pytest.mark.e2e


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    """Services where one sequence runs and two may wait."""
    with running_fleet(tmp_path, redis_server.url, checkpoint()) as fleet:
        fleet.start_worker("worker", "--max-rows", "1")
        fleet.start_scheduler("scheduler", "--max-queue-requests", "2", "--max-decode-steps", "1")
        fleet.start_tokenizer("tokenizer")
        fleet.start_gateway("tokenizer")
        yield fleet


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK, which does not try again by itself."""
    async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key=API_KEY, max_retries=0) as made:
        yield made


async def ask(client: openai.AsyncOpenAI, prompt: str, **extra: object) -> Completion:
    return await client.completions.create(model="tiny", prompt=prompt, max_tokens=4, extra_body=extra)


@asynccontextmanager
async def occupied(client: openai.AsyncOpenAI) -> AsyncIterator[None]:
    """The row is taken within, by what gives way to nobody."""
    extra = {"ignore_eos": True, "priority": -10}
    stream = await client.completions.create(
        model="tiny", prompt="x", max_tokens=4000, stream=True, extra_body=extra
    )
    await anext(aiter(stream))
    try:
        yield
    finally:
        await stream.close()


async def until_waiting(fleet: Fleet, count: int) -> None:
    async with asyncio.timeout(120):
        while (await fleet.scheduler_status("scheduler")).sequences_waiting != count:
            await asyncio.sleep(0.01)


async def test_deadlines_priorities_and_a_full_queue(fleet: Fleet, client: openai.AsyncOpenAI) -> None:
    async with occupied(client):
        with pytest.raises(openai.APIStatusError, match="while it was queued") as late:
            await ask(client, "late", timeout=0.5)
        assert late.value.status_code == 504
        assert late.value.body["param"] == "timeout"  # type: ignore[call-overload]

        order: list[str] = []

        async def finish(name: str, priority: int) -> None:
            await ask(client, name, priority=priority)
            order.append(name)

        waiting = []
        for count, (name, priority) in enumerate((("patient", 5), ("urgent", -5)), start=1):
            waiting.append(asyncio.create_task(finish(name, priority)))
            await until_waiting(fleet, count)
        with pytest.raises(openai.RateLimitError, match="the queue is full: 2 sequences wait") as full:
            await ask(client, "one too many")
        assert 1 <= int(full.value.response.headers["Retry-After"]) <= 60
    await asyncio.gather(*waiting)
    assert order == ["urgent", "patient"]

    # By now the speed is known: what cannot be done in time is not begun.
    with pytest.raises(openai.RateLimitError, match="longer than the timeout") as hopeless:
        await ask(client, "hopeless", timeout=0.0001)
    assert int(hopeless.value.response.headers["Retry-After"]) >= 1


async def test_of_a_burst_those_that_fit_are_answered_and_the_rest_is_refused_at_once(
    fleet: Fleet, client: openai.AsyncOpenAI
) -> None:
    async with occupied(client):
        burst = [
            asyncio.create_task(ask(client, f"request {number}", ignore_eos=True)) for number in range(40)
        ]
        # The row stays taken: nobody who is refused waits for anything.
        refused: set[asyncio.Task[Completion]] = set()
        async with asyncio.timeout(120):
            while len(refused) < 38:
                await asyncio.wait(set(burst) - refused, return_when=asyncio.FIRST_COMPLETED)
                refused = {task for task in burst if task.done()}
        await until_waiting(fleet, 2)
    for task in refused:
        error = task.exception()
        assert isinstance(error, openai.RateLimitError)
        assert 1 <= int(error.response.headers["Retry-After"]) <= 60
    for answer in await asyncio.gather(*(task for task in burst if task not in refused)):
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
