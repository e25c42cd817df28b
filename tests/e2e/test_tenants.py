"""Keys are tenants: what one has cached, another cannot tell, unless both say that it is no secret."""

import openai
import pytest

from quire import keys
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


def test_what_both_call_public_is_shared(tenants: tuple[openai.OpenAI, openai.OpenAI]) -> None:
    first, second = tenants
    prompt = "Public: " + PROMPT
    cached(first, prompt, public_prefix_tokens=64)
    assert cached(second, prompt)[1] == 0
    assert cached(second, prompt + "more", public_prefix_tokens=64)[1] == 64
