"""A scheduler dies and is started again while its worker lives: the next requests find the cache that was there."""

import signal
from pathlib import Path

import openai
import pytest

from tests.support.checkpoints import checkpoint
from tests.support.fleet import Fleet, running_fleet
from tests.support.redis_server import RedisServer
from tests.support.server import API_KEY

pytestmark = [pytest.mark.fault, pytest.mark.e2e, pytest.mark.slow]

REFUSED = "quire_scheduler_index_refused_blocks_total"
ADOPTED = "quire_scheduler_index_adopted_blocks_total"
PROMPTS = [
    f"Report {number}: " + " ".join(f"line {number * 100 + i} of it." for i in range(60))
    for number in range(4)
]


async def ask_all(client: openai.AsyncOpenAI) -> tuple[list[str], float]:
    """The answers to every prompt, and the share of the prompts' tokens that came from the cache."""
    answers, cached, asked = [], 0, 0
    for prompt in PROMPTS:
        completion = await client.completions.create(
            model="tiny", prompt=prompt, max_tokens=16, temperature=0.0, extra_body={"ignore_eos": True}
        )
        usage = completion.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        answers.append(completion.choices[0].text)
        cached += usage.prompt_tokens_details.cached_tokens or 0
        asked += usage.prompt_tokens
    return answers, cached / asked


def show(what: str, fleet: Fleet, rate: float) -> None:
    adopted, refused = (fleet.metric("scheduler", name) for name in (ADOPTED, REFUSED))
    print(f"{what:32} hit rate {rate:6.1%}   blocks adopted {adopted:4.0f}   entries refused {refused:4.0f}")


async def test_a_restarted_scheduler_serves_from_the_cache_that_its_worker_kept(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with running_fleet(tmp_path, redis_server.url, checkpoint()) as fleet:
        fleet.start_worker("worker")
        fleet.start_scheduler("scheduler")
        fleet.start_tokenizer("tokenizer")
        fleet.start_gateway("tokenizer")
        async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key=API_KEY, max_retries=20) as client:
            answers, cold = await ask_all(client)
            show("cold", fleet, cold)
            assert cold == 0.0
            again, warm = await ask_all(client)
            show("warm", fleet, warm)
            assert again == answers
            assert warm > 0.9

            fleet.end("scheduler", signal.SIGKILL)
            fleet.start_scheduler("scheduler")
            again, after = await ask_all(client)
            show("scheduler killed and started", fleet, after)
            assert again == answers
            assert after == warm
            assert fleet.metric("scheduler", ADOPTED) > 0
            assert fleet.metric("scheduler", REFUSED) == 0

            # The worker's blocks die with it; what the index says of them is refused.
            fleet.end("worker", signal.SIGKILL)
            fleet.end("scheduler", signal.SIGKILL)
            fleet.start_worker("worker")
            fleet.start_scheduler("scheduler")
            again, void = await ask_all(client)
            show("worker started again too", fleet, void)
            assert again == answers
            assert void == 0.0
            assert fleet.metric("scheduler", ADOPTED) == 0
            assert fleet.metric("scheduler", REFUSED) > 0
            fleet.check()
