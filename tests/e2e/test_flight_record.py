"""A running scheduler's flight record, asked for by a signal, replays in another process."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from tests.support.checkpoints import checkpoint
from tests.support.server import API_KEY, REPOSITORY, processes_of, running_server

pytestmark = pytest.mark.e2e


def test_a_dump_on_sigusr2_replays_byte_for_byte(tmp_path: Path) -> None:
    with running_server(checkpoint(), tmp_path) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:
            for number in range(6):
                client.completions.create(
                    model="tiny", prompt=f"Page {number} of many", max_tokens=20, n=1 + number % 2
                )
        os.kill(processes_of(tmp_path)["scheduler_svc"], signal.SIGUSR2)
        while not (found := re.search(r"(/\S*quire-flight-\S+\.pickle)", "".join(server.lines))):
            time.sleep(0.02)
        path = Path(found[1])
        replayed = subprocess.run(
            [sys.executable, "-m", "benchmarks.replay", path], capture_output=True, text=True, cwd=REPOSITORY
        )
        path.unlink()
    assert "all byte-identical" in replayed.stdout, replayed.stderr
    assert int(re.search(r"(\d+) commands", replayed.stdout)[1]) >= 20
