"""Five hundred mixed requests while a worker, a scheduler, Redis and a tokenizer service go, one after the other."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import redis.asyncio as redis

from quire.redis_client import open_redis
from tests.fault.mixed_requests import Asked, Kind, Progress, answer, draw, kinds
from tests.support.fleet import Fleet, running_fleet
from tests.support.redis_server import RedisServer, running_redis
from tests.support.server import API_KEY, REPOSITORY

pytestmark = [pytest.mark.fault, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]

NUM_REQUESTS = 500
AT_ONCE = 24
SCHEDULERS = ("scheduler-a", "scheduler-b")
# A busy machine may predict that a request waits for more than a minute: it is to be right, not soon.
SCHEDULER = ("--grace-s", "0.5", "--max-decode-steps", "2", "--max-wait-s", "0")
# Few enough blocks that sequences are preempted, too.
WORKER = ("--kv-cache-memory", "48MiB", "--max-model-len", "2048", "--max-rows", "16")


@pytest.fixture
def lasting_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One that has what it had when it is started again: the ledger is compared at the end."""
    with running_redis(tmp_path, keeps=True) as server:
        yield server


async def start(fleet: Fleet) -> None:
    """Two schedulers, three workers, two tokenizer services, one gateway; every worker leased."""
    for name in SCHEDULERS:
        fleet.start_scheduler(name, *SCHEDULER)
    for name in ("worker-0", "worker-1", "worker-2"):
        fleet.start_worker(name, *WORKER)
    for name in ("tokenizer-0", "tokenizer-1"):
        fleet.start_tokenizer(name)
    await asyncio.to_thread(fleet.start_gateway, "tokenizer-0", "tokenizer-1")
    await until_driven(fleet, {"worker-0", "worker-1", "worker-2"})


async def until_driven(fleet: Fleet, workers: set[str]) -> list[set[str]]:
    """Return what each scheduler drives once every one of `workers` is driven by exactly one."""
    async with asyncio.timeout(120):
        while True:
            driven = [await driven_by(fleet, name) for name in SCHEDULERS]
            if Counter(worker for found in driven for worker in found) == Counter(workers):
                return driven
            fleet.check()
            await asyncio.sleep(0.05)


async def driven_by(fleet: Fleet, scheduler: str) -> set[str]:
    replicas = (await fleet.scheduler_status(scheduler)).replicas
    return {replica.worker.worker_id for replica in replicas if replica.connected}


async def run_all(
    client: openai.AsyncOpenAI, catalogue: list[Kind], requests: list[Asked], progress: Progress
) -> list[list[str] | Exception | None]:
    """What came of each request, in order."""
    may_run = asyncio.Semaphore(AT_ONCE)

    async def one(asked: Asked) -> list[str] | Exception | None:
        async with may_run:
            try:
                return await answer(client, catalogue[asked.kind], asked)
            except (openai.APIError, AssertionError) as error:
                return error
            finally:
                await progress.note()

    return await asyncio.gather(*(one(asked) for asked in requests))


async def disturb(fleet: Fleet, redis_server: RedisServer, progress: Progress, how: signal.Signals) -> None:
    """One fault after the other, each when so many requests are over."""

    async def at(count: int, do: Callable[[], object]) -> None:
        await progress.reach(count)
        await asyncio.to_thread(do)
        fleet.check()

    await at(60, lambda: fleet.end("worker-1", signal.SIGKILL))
    await at(61, lambda: fleet.start_worker("worker-3", *WORKER))
    await at(160, lambda: fleet.end("scheduler-a", how))
    await at(170, lambda: fleet.start_scheduler("scheduler-a", *SCHEDULER))
    await at(280, redis_server.stop)
    await at(340, redis_server.start)
    await at(420, lambda: fleet.end("tokenizer-0", signal.SIGKILL))
    await at(430, lambda: fleet.start_tokenizer("tokenizer-0"))


async def until_at_rest(fleet: Fleet, workers: set[str]) -> int:
    """Return what the workers have computed, all together, once nothing runs and no row or block is taken."""
    async with asyncio.timeout(120):
        while True:
            found = [await fleet.worker_status(name) for name in workers]
            if not any(status.rows_used or status.blocks_used for status in found):
                return sum(status.tokens_computed for status in found)
            await asyncio.sleep(0.05)


async def ledger(client: redis.Redis, pattern: str, field: str | None = None) -> Counter[str]:
    """Sums of the fields of all keys that match."""
    sums: Counter[str] = Counter()
    for key in await client.keys(pattern):
        for name, value in (await client.hgetall(key)).items():
            sums[name.decode()] += int(value)  # type: ignore[union-attr]
    return sums


async def settled(fleet: Fleet, client: redis.Redis) -> tuple[Counter[str], int]:
    """What tenants were charged, once no scheduler has anything left to write; and of how many sequences."""
    async with asyncio.timeout(120):
        while any([await has_unsettled(fleet, name) for name in SCHEDULERS]):
            await asyncio.sleep(0.05)
    keys = [key for key in await client.keys("quire:settled:*") if not key.endswith(b":refused")]
    return await ledger(client, "quire:usage:*"), len(keys)


async def has_unsettled(fleet: Fleet, scheduler: str) -> bool:
    """Whether a sequence has not ended there, or its record is not in Redis."""
    status = await fleet.scheduler_status(scheduler)
    if status.sequences_waiting or any(replica.rows_used for replica in status.replicas):
        return True
    return await asyncio.to_thread(fleet.metric, scheduler, "quire_scheduler_ledger_unsettled_records") > 0


def report(outcomes: list[list[str] | Exception | None], expected: list[list[str]]) -> Counter[str]:
    """How many streams were right, cancelled, wrong, or ended with which error."""
    counts: Counter[str] = Counter()
    for outcome, right in zip(outcomes, expected, strict=True):
        if isinstance(outcome, Exception):
            counts[f"{type(outcome).__name__}: {outcome}"] += 1
        elif outcome is None:
            counts["cancelled by the client"] += 1
        else:
            counts["right" if outcome == right else f"wrong: {outcome} for {right}"] += 1
    return counts


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
async def test_every_stream_is_right_whatever_dies(
    lasting_redis: RedisServer, tmp_path: Path, how: signal.Signals
) -> None:
    catalogue = kinds()
    requests = draw(NUM_REQUESTS, len(catalogue))
    with running_fleet(
        tmp_path, lasting_redis.url, REPOSITORY / "models" / "demo", served_name="demo"
    ) as fleet:
        await start(fleet)
        async with openai.AsyncOpenAI(
            base_url=f"{fleet.url}/v1", api_key=API_KEY, max_retries=0, timeout=300
        ) as client:
            once = [Asked(kind, stream=False, cancel=False) for kind in range(len(catalogue))]
            answers = await run_all(client, catalogue, once, Progress())
            undisturbed = [found for found in answers if isinstance(found, list)]
            assert len(undisturbed) == len(catalogue), answers

            progress = Progress()
            disturbing = asyncio.create_task(disturb(fleet, lasting_redis, progress, how))
            outcomes = await run_all(client, catalogue, requests, progress)
            await disturbing
        counts = report(outcomes, [undisturbed[asked.kind] for asked in requests])
        print(f"\n{dict(counts)}")
        assert set(counts) <= {"right", "cancelled by the client"}

        survivors = {"worker-0", "worker-2", "worker-3"}
        await until_driven(fleet, survivors)
        computed = await until_at_rest(fleet, survivors)
        num_sequences = sum(catalogue[asked.kind].num_sequences for asked in [*once, *requests])
        await compare_ledgers(fleet, computed, num_sequences, how)
        fleet.check()


async def compare_ledgers(fleet: Fleet, computed: int, num_sequences: int, how: signal.Signals) -> None:
    """What tenants were charged, beside what workers told schedulers and what those that live say themselves."""
    # Closed even if it fails: else a later test is charged with the connection.
    async with open_redis(fleet.redis_url) as client:
        charged, num_charged = await settled(fleet, client)
        told = await ledger(client, "quire:computed:*")
    told_by_dead = told.pop("worker-1")
    print(
        f"charged {charged['computed_tokens']} tokens computed, of them {told_by_dead} by the killed worker"
    )
    print(f"workers that live computed {computed}, and told schedulers of {sum(told.values())}")
    print(dict(charged))
    assert charged["recomputed_tokens"] > 0
    assert charged["errors"] == 0
    if how == signal.SIGTERM:
        assert charged["computed_tokens"] == computed + told_by_dead
        assert sum(told.values()) == computed
        assert num_charged == num_sequences
    else:
        # What the killed scheduler had under way is charged to nobody, nor what ended in its last 0.05 s.
        assert num_sequences - AT_ONCE <= num_charged <= num_sequences
        assert 0.9 * computed < charged["computed_tokens"] - told_by_dead <= computed
