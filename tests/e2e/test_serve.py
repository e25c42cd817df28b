"""`quire serve` as a command: what it prints, how it fails, how it stops."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.support.checkpoints import checkpoint
from tests.support.server import API_KEY, exposition, launch, processes_of, running_server

pytestmark = pytest.mark.e2e


def test_the_printed_curl_line_streams_an_answer_with_the_minted_key(tmp_path: Path) -> None:
    with running_server(checkpoint(), tmp_path, api_key="") as server:
        text = "".join(server.lines)
        assert re.search(
            r"model loaded on cpu: weights [\d.]+ MiB, KV cache [\d.]+ \wiB for [\d,]+ tokens", text
        )
        command = text[text.index("curl") :].partition("\ngRPC")[0]
        answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
        assert answer.startswith("data: {")
        assert answer.rstrip().endswith("data: [DONE]")
        key = next(word for word in text.split() if word.startswith("sk-quire-"))
        kept = (tmp_path / "home" / "keys.json").read_text()
        assert key not in kept
        assert (tmp_path / "home" / "keys.json").stat().st_mode & 0o077 == 0


def test_the_printed_line_asks_for_a_key_that_was_given_and_is_not_shown(tmp_path: Path) -> None:
    with running_server(checkpoint(), tmp_path) as server:
        text = "".join(server.lines)
        assert API_KEY not in text
        command = text[text.index("printf") :].partition("\ngRPC")[0]
        answer = subprocess.run(
            ["bash", "-c", command], input=f"{API_KEY}\n", capture_output=True, text=True, check=True
        ).stdout
        assert answer.startswith("API key: data: {")
        assert answer.rstrip().endswith("data: [DONE]")


async def test_ctrl_c_stops_every_process_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    server = launch(checkpoint(), tmp_path)
    await asyncio.to_thread(server.wait_until_ready)
    assert set(processes_of(tmp_path)) == {"gateway", "tokenizer_svc", "scheduler_svc", "gpu_worker"}
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = b'{"model":"tiny","prompt":"x","max_tokens":2000,"stream":true,"ignore_eos":true}'
    headers = ["Host: x", "Authorization: Bearer sk-tests", f"Content-Length: {len(body)}"]
    head = "\r\n".join(["POST /v1/completions HTTP/1.1", *headers, "Content-Type: application/json"])
    writer.write(head.encode() + b"\r\n\r\n" + body)
    assert b"200" in await reader.readline()
    assert await asyncio.to_thread(server.stop) == 0
    assert processes_of(tmp_path) == {}
    writer.close()


def test_gateways_share_the_port_and_any_of_them_shows_the_metrics_of_all(tmp_path: Path) -> None:
    with running_server(checkpoint(), tmp_path, "--gateways", "2") as server:
        for number in range(12):
            asked = urllib.request.Request(
                f"{server.url}/v1/completions",
                json.dumps({"model": "tiny", "prompt": f"Page {number}", "max_tokens": 2}).encode(),
                {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"},
            )
            with urllib.request.urlopen(asked) as response:
                assert response.status == 200
        done = [
            line
            for line in exposition(server.url).splitlines()
            if line.startswith("vllm:request_success_total{")
        ]
        assert sum(float(line.rpartition(" ")[2]) for line in done) == 12
        assert len(processes_of(tmp_path)) == 4


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        server = launch(checkpoint(), tmp_path, "--port", str(port))
        assert server.process.wait() == 1
    assert server.output().strip() == f"quire: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert processes_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("model", "words"),
    [("/no/such/checkpoint", "no directory /no/such/checkpoint"), ("{tmp}", "config.json")],
)
def test_a_missing_model_is_one_clear_line(tmp_path: Path, model: str, words: str) -> None:
    server = launch(model.format(tmp=tmp_path), tmp_path)
    assert server.process.wait() == 1
    assert words in server.output()
    assert "Traceback" not in server.output()


def test_an_unsupported_architecture_says_what_is_supported(tmp_path: Path) -> None:
    import json
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint(), broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["BloomForCausalLM"]}))
    server = launch(broken, tmp_path)
    assert server.process.wait() == 1
    assert "BloomForCausalLM" in server.output()
    assert "LlamaForCausalLM" in server.output()
    assert "Traceback" not in server.output()
    assert processes_of(tmp_path) == {}


def test_a_killed_worker_is_started_again_and_the_next_request_is_served(tmp_path: Path) -> None:
    import openai

    with running_server(checkpoint(), tmp_path) as server:
        os.kill(processes_of(tmp_path)["gpu_worker"], signal.SIGKILL)
        # Until the worker is back, new requests wait.
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-tests", max_retries=20) as client:
            completion = client.completions.create(model="tiny", prompt="one", max_tokens=3)
        assert completion.usage is not None
        assert any("gpu_worker was killed by SIGKILL; starting it again" in line for line in server.lines)


def test_dummy_weights_serve_a_config_alone(tmp_path: Path) -> None:
    import shutil

    import openai

    bare = tmp_path / "bare"
    shutil.copytree(checkpoint(), bare, ignore=shutil.ignore_patterns("*.safetensors*"))
    with (
        running_server(bare, tmp_path, "--load-format", "dummy") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-tests") as client,
    ):
        completion = client.completions.create(model="tiny", prompt="one", max_tokens=3)
        assert completion.usage is not None
        assert completion.usage.completion_tokens <= 3
