"""Keys are tenants: what one has cached, another cannot tell, unless both say that it is no secret."""

import asyncio

import openai
import pytest

from quire import keys
from quire.rpc.channel import open_channel
from quire.v1 import types_pb2, worker_pb2_grpc
from tests.support.server import Server

pytestmark = pytest.mark.e2e

PROMPT = "A quire is four sheets of parchment folded once, and this is a long prompt about it. " * 4


@pytest.fixture
def tenants(server: Server) -> tuple[openai.OpenAI, openai.OpenAI]:
    """Two clients with keys of their own, made while the server runs."""
    path = server.keys_file
    minted = {name: keys.mint() for name in ("first", "second")}
    keys.save(path, [*keys.load(path), *(keys.record(key, name) for name, key in minted.items())])
    first, second = (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) for key in minted.values()
    )
    return first, second


def cached(client: openai.OpenAI, prompt: str, **extra: object) -> tuple[int, int]:
    """Prompt tokens, and how many of them came from the cache."""
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=1, extra_body=extra)
    assert answer.usage is not None
    details = answer.usage.prompt_tokens_details
    return answer.usage.prompt_tokens, (details.cached_tokens or 0) if details is not None else 0


def test_one_key_s_cache_is_no_other_s(tenants: tuple[openai.OpenAI, openai.OpenAI]) -> None:
    first, second = tenants
    length, before = cached(first, PROMPT)
    assert before == 0
    again = cached(first, PROMPT)[1]
    assert again == (length - 1) // 16 * 16
    assert cached(second, PROMPT)[1] == 0
    assert cached(first, PROMPT, cache_salt="mine")[1] == 0
    assert cached(first, PROMPT, cache_salt="mine")[1] == again


async def test_a_guess_of_anothers_prompt_costs_the_work_of_one_that_nobody_ever_asked(
    server: Server, tenants: tuple[openai.OpenAI, openai.OpenAI]
) -> None:
    """What takes the same work takes the same time: judged by the worker's own count, not by a clock."""
    first, second = tenants
    words = PROMPT.split()
    asked, unheard = " ".join(["Secret:", *words]), " ".join(["Secret:", *reversed(words)])
    async with open_channel(server.address("worker")) as channel:
        stub: worker_pb2_grpc.WorkerAsyncStub = worker_pb2_grpc.WorkerStub(channel)

        async def work_of(client: openai.OpenAI, prompt: str) -> tuple[int, int]:
            """Tokens that came from the cache, and positions that the worker computed, of all but the last token."""
            before = (await stub.GetStatus(types_pb2.GetStatusRequest())).tokens_computed
            length, found = await asyncio.to_thread(cached, client, prompt)
            after = (await stub.GetStatus(types_pb2.GetStatusRequest())).tokens_computed
            return found, after - before - length

        assert await work_of(first, asked) == (0, 0)
        found, saved = await work_of(first, asked)
        assert found == -saved > 0, "who asked it before has it from the cache"
        assert await work_of(second, asked) == (0, 0)
        assert await work_of(second, unheard) == (0, 0)


def test_what_both_call_public_is_shared(tenants: tuple[openai.OpenAI, openai.OpenAI]) -> None:
    first, second = tenants
    prompt = "Public: " + PROMPT
    cached(first, prompt, public_prefix_tokens=64)
    assert cached(second, prompt)[1] == 0
    assert cached(second, prompt + "more", public_prefix_tokens=64)[1] == 64
