"""The bundled model, served as `make serve` serves it, gets held-out tasks right: answers are read, not noise."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import API_KEY, REPOSITORY, Server, running_server

pytestmark = pytest.mark.e2e

QUICK_TASKS = ("retrieval_512", "echo", "arithmetic", "json", "tool_call", "memory", "thinking")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(REPOSITORY / "models" / "demo", tmp_path_factory.mktemp("d")) as running:
        yield running


async def evaluate(*flags: str, path: Path) -> dict[str, float]:
    """Share of right answers by task."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "benchmarks/demo_eval.py", *flags, "--json", str(path), cwd=REPOSITORY
    )
    assert await process.wait() == 0
    scores = json.loads(await asyncio.to_thread(path.read_text))["scores"]
    return {score["task"]: score["accuracy"] for score in scores}


def through_http(server: Server) -> list[str]:
    tokenizer = str(REPOSITORY / "models" / "demo")
    return ["--url", server.url, "--api-key", API_KEY, "--concurrency", "8", "--tokenizer", tokenizer]


async def test_the_server_answers_held_out_tasks_right(demo: Server, tmp_path: Path) -> None:
    flags = [*through_http(demo), "--samples", "6", "--tasks", *QUICK_TASKS]
    assert set(await evaluate(*flags, path=tmp_path / "scores.json")) == set(QUICK_TASKS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_scores_through_http_are_those_of_transformers(demo: Server, tmp_path: Path) -> None:
    served = await evaluate(*through_http(demo), "--short", path=tmp_path / "served.json")
    checkpoint = ["--checkpoint", str(REPOSITORY / "models" / "demo"), "--dtype", "float32"]
    alone = await evaluate(*checkpoint, "--short", path=tmp_path / "alone.json")
    assert served == pytest.approx(alone, abs=0.005)
