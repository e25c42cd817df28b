"""Mutual TLS and the shared token through the whole chain: the SDK is served, and strangers reach no service."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import openai
import pytest
from typer.testing import CliRunner

from quire.cli import app
from quire.launcher import free_port
from quire.rpc.channel import open_channel
from quire.rpc.identity import read_identity
from quire.rpc.security import Security
from quire.v1 import scheduler_pb2_grpc, tokenizer_pb2_grpc, types_pb2, worker_pb2_grpc
from tests.support.identities import TOKEN
from tests.support.server import API_KEY, REPOSITORY, is_ready, running_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STUBS = {
    "tokenizer_svc": tokenizer_pb2_grpc.TokenizerStub,
    "scheduler_svc": scheduler_pb2_grpc.SchedulerStub,
    "gpu_worker": worker_pb2_grpc.WorkerStub,
}


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    assert CliRunner().invoke(app, ["certs", str(folder)]).exit_code == 0
    return folder


def identity_flags(certs: Path, service: str) -> list[str]:
    folder = certs / service
    return [
        "--tls-cert",
        f"{folder}/tls.crt",
        "--tls-key",
        f"{folder}/tls.key",
        "--tls-ca",
        f"{folder}/ca.crt",
    ]


@contextmanager
def four_services(model: Path, certs: Path, folder: Path) -> Iterator[dict[str, int]]:
    """Ports of the services, each on TCP, with certificates and the token."""
    ports = {name: free_port() for name in ("gateway", *STUBS)}
    commands = {
        "gateway": [
            "--tokenizers",
            f"127.0.0.1:{ports['tokenizer_svc']}",
            "--keys-file",
            str(folder / "keys.json"),
        ],
        "tokenizer_svc": ["--model", str(model), "--schedulers", f"127.0.0.1:{ports['scheduler_svc']}"],
        "scheduler_svc": ["--workers", f"127.0.0.1:{ports['gpu_worker']}"],
        "gpu_worker": ["--model", str(model), "--device", "cpu", "--served-model-name", "tiny"],
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith("QUIRE_")}
    environment |= {"OMP_NUM_THREADS": "1", "QUIRE_RPC_TOKEN": TOKEN}
    processes = []
    with (folder / "log").open("wb") as log:
        for name, flags in commands.items():
            own = {"QUIRE_API_KEY": API_KEY} if name == "gateway" else {}
            listen = ["--listen", f"127.0.0.1:{ports[name]}"]
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", name, *listen, *flags, *identity_flags(certs, name)],
                    cwd=REPOSITORY,
                    env=environment | own,
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        while not is_ready(f"http://127.0.0.1:{ports['gateway']}"):
            assert all(process.poll() is None for process in processes), (folder / "log").read_text()
            time.sleep(0.05)
        yield ports
    finally:
        for process in processes:
            process.kill()
            process.wait()


def complete(url: str) -> int:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as client:
        stream = client.completions.create(
            model="tiny", prompt="one two", max_tokens=8, stream=True, extra_body={"ignore_eos": True},
            stream_options={"include_usage": True},
        )  # fmt: skip
        return [chunk.usage.completion_tokens for chunk in stream if chunk.usage is not None][-1]


async def status_of(service: str, address: str, identity: Security) -> grpc.StatusCode:
    async with open_channel(address, identity) as channel:
        try:
            await STUBS[service](channel).GetStatus(types_pb2.GetStatusRequest(), timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def is_healthy(address: str, identity: Path | None) -> bool:
    """What a container's health check says, beside a service with the files in `identity`, or without any."""
    files = {"CERT": "tls.crt", "KEY": "tls.key", "CA": "ca.crt"} if identity else {}
    environment = {f"QUIRE_TLS_{name}": f"{identity}/{file}" for name, file in files.items()}
    command = [sys.executable, "-m", "quire.health", address]
    checked = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True)
    return checked.returncode == 0


def documented_client_says(ports: dict[str, int], certs: Path) -> str:
    """What the documented gRPC client prints, with the operator's certificates and the token."""
    addresses = {"--tokenizer": "tokenizer_svc", "--scheduler": "scheduler_svc"}
    flags = [part for flag, name in addresses.items() for part in (flag, f"127.0.0.1:{ports[name]}")]
    command = [sys.executable, "docs/examples/grpc_client.py", *flags, "--certs", str(certs / "operator")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "QUIRE_RPC_TOKEN": TOKEN}
    ended = subprocess.run(
        [*command, "--max-tokens", "6"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


async def test_with_certificates_and_token_the_sdk_is_served_and_strangers_are_not(
    llama: Path, certs: Path, tmp_path: Path
) -> None:
    operator = read_identity("operator", *(certs / "operator" / f for f in ("tls.crt", "tls.key", "ca.crt")))
    with_token = Security(operator.certificate, operator.private_key, operator.authorities, TOKEN)
    with four_services(llama, certs, tmp_path) as ports:
        url = f"http://127.0.0.1:{ports['gateway']}"
        assert complete(url) == 8
        for service in STUBS:
            address = f"127.0.0.1:{ports[service]}"
            assert await status_of(service, address, Security()) is grpc.StatusCode.UNAVAILABLE
            assert await status_of(service, address, Security(token=TOKEN)) is grpc.StatusCode.UNAVAILABLE
            assert await status_of(service, address, operator) is grpc.StatusCode.UNAUTHENTICATED
            assert await status_of(service, address, with_token) is grpc.StatusCode.OK
        assert complete(url) == 8
        address = f"127.0.0.1:{ports['gpu_worker']}"
        assert "[FINISH_REASON_LENGTH, 6 tokens]" in documented_client_says(ports, certs)
        while not is_healthy(address, certs / "gpu_worker"):
            pass  # no answer in its three seconds, on a busy machine
        assert not is_healthy(address, None)


async def test_quire_serve_uses_the_certificates_that_quire_certs_made(
    llama: Path, certs: Path, tmp_path: Path
) -> None:
    with running_server(llama, tmp_path, "--max-rows", "8", "--certs", str(certs)) as server:
        assert complete(server.url) == 8
        address = server.address("scheduler")
        assert await status_of("scheduler_svc", address, Security()) is grpc.StatusCode.UNAVAILABLE
