"""Two hundred requests over sixty-four blocks: everybody is served, right, and the work done twice stays bounded."""

import asyncio
import re
from pathlib import Path

import openai
import pytest

from tests.support.checkpoints import checkpoint
from tests.support.server import API_KEY, Server, exposition, running_server

pytestmark = [pytest.mark.fault, pytest.mark.slow]

NUM_REQUESTS, NUM_KINDS = 200, 25
NUM_TOKENS = 100
# 64 blocks of 16 tokens: 3 layers, keys and values, 2 heads of 32 in four bytes.
KV_CACHE = "1536KiB"


async def ask(client: openai.AsyncOpenAI, number: int) -> list[int]:
    """Tokens of one request; those of a kind have equal prompts, but share nothing."""
    kind, salt = number % NUM_KINDS, f"salt {number}"
    completion = await client.completions.create(
        model="tiny",
        prompt=[5 + (31 * kind + place) % 700 for place in range(40)],
        max_tokens=NUM_TOKENS,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True, "cache_salt": salt},
    )
    tokens: list[int] = completion.choices[0].model_extra["token_ids"]
    return tokens


def metric(server: Server, name: str) -> float:
    """The sum over a metric's labels."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", exposition(server.url), re.M)
    return sum(map(float, found))


async def test_everybody_is_served_right_and_little_is_computed_twice(tmp_path: Path) -> None:
    with running_server(
        checkpoint(), tmp_path, "--kv-cache-memory", KV_CACHE, "--max-model-len", "1024"
    ) as server:
        # On a slow machine the last ones would wait more than a minute, and are told to come back then.
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=20, timeout=280
        ) as client:
            alone = [await ask(client, kind) for kind in range(NUM_KINDS)]
            assert metric(server, "vllm:num_preemptions_total") == 0
            answers = await asyncio.gather(
                *(ask(client, NUM_KINDS + number) for number in range(NUM_REQUESTS))
            )
        assert list(answers) == [alone[number % NUM_KINDS] for number in range(NUM_REQUESTS)]
        preemptions = metric(server, "vllm:num_preemptions_total")
        recomputed = metric(server, "quire_scheduler_recomputed_tokens_total")
        computed = metric(server, "quire_worker_tokens_computed_total")
        print(f"{preemptions:.0f} preemptions; {recomputed / computed:.1%} of {computed:.0f} positions twice")
        assert preemptions > 0
        assert recomputed / computed < 0.5
