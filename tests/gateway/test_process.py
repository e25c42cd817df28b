"""`python -m gateway` as a process: its first key, its port, its end."""

import asyncio
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from quire import keys
from quire.launcher import free_port
from quire.v1 import tokenizer_pb2
from tests.support.fake_tokenizer import Delta, FakeTokenizer, last, usage
from tests.support.otlp_receiver import ReceivedSpan, otlp_receiver
from tests.support.server import REPOSITORY
from tests.support.until import until

# Of waiting for a process to start or to end, on a busy machine too.
LIMIT_S = 120.0


@dataclass
class GatewayProcess:
    """A running `python -m gateway`, whose output goes to files."""

    process: asyncio.subprocess.Process
    port: int
    directory: Path

    def stdout(self) -> str:
        """What it printed."""
        return (self.directory / "stdout").read_text()

    def stderr(self) -> str:
        """What it logged."""
        return (self.directory / "stderr").read_text()

    def limits(self, title: str) -> list[str]:
        """Soft and hard limit of the process."""
        lines = Path(f"/proc/{self.process.pid}/limits").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(title))
        return line.removeprefix(title).split()[:2]

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[httpx2.AsyncClient]:
        """A client, once the gateway is ready."""
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=60) as http:
            await self.answers(http, 200)
            yield http

    async def answers(self, http: httpx2.AsyncClient, status: int) -> None:
        """Return once /health/ready answers with `status`."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                assert self.process.returncode is None, self.stderr()
                try:
                    if (await http.get("/health/ready")).status_code == status:
                        return
                except httpx2.ConnectError:
                    pass
                await asyncio.sleep(0.02)


@asynccontextmanager
async def gateway_process(
    tokenizer: FakeTokenizer, directory: Path, *flags: str, port: int = 0, **environment: str
) -> AsyncIterator[GatewayProcess]:
    """Run `python -m gateway` for the length of the block."""
    port = port or free_port()
    with (directory / "stdout").open("w") as out, (directory / "stderr").open("w") as err:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "--listen", f"127.0.0.1:{port}"),
            *("--tokenizers", tokenizer.address, "--keys-file", str(directory / "keys.json")),
            *("--log-level", "debug", "--log-format", "json", "--leave-delay-s", "0", *flags),
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdout=out,
            stderr=err,
        )
    try:
        yield GatewayProcess(process, port, directory)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_first_start_mints_a_key_and_shows_it_once(tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    async with gateway_process(tokenizer, tmp_path) as running, running.ready() as http:
        key = running.stdout().rsplit(" ", 1)[-1].strip()
        assert key.startswith(keys.KEY_PREFIX)
        assert (await http.get("/v1/models")).status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert (await http.get("/v1/models", headers=headers)).status_code == 200
        # Errors are logged with their causes; the key must be in none of them.
        for body in (b"{", b'{"prompt": []}', b'{"prompt": "Hi"}'):
            await http.post("/v1/completions", content=body, headers=headers)
        assert key not in running.stderr()
        assert key not in (tmp_path / "keys.json").read_text()
    async with gateway_process(tokenizer, tmp_path) as running, running.ready() as http:
        assert running.stdout() == ""
        assert (await http.get("/v1/models", headers=headers)).status_code == 200
        assert key not in running.stderr()


async def test_key_from_the_environment_mints_nothing(tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    key = "my-own-secret-key"
    async with (
        gateway_process(tokenizer, tmp_path, QUIRE_API_KEY=key) as running,
        running.ready() as http,
    ):
        assert (await http.get("/v1/models", headers={"x-api-key": key})).status_code == 200
        running.process.terminate()
        assert await running.process.wait() == 0
        assert running.stdout() == ""
        assert key not in running.stderr()
        assert not (tmp_path / "keys.json").exists()


async def test_taken_port_is_one_clear_line(tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with gateway_process(tokenizer, tmp_path, port=port) as running:
            assert await asyncio.wait_for(running.process.wait(), LIMIT_S) == 1
            lines = [line for line in running.stderr().splitlines() if not line.startswith("{")]
            assert lines == [f"gateway: cannot listen on 127.0.0.1:{port}: Address already in use"]
            assert running.stdout() == ""


async def test_connections_are_not_bounded_by_the_soft_limit_of_open_files(
    tokenizer: FakeTokenizer, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        async with gateway_process(tokenizer, tmp_path) as running, running.ready():
            of_gateway = running.limits("Max open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert of_gateway[0] == of_gateway[1] != "512"


async def test_damaged_keys_file_is_one_clear_line(tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    async with gateway_process(tokenizer, tmp_path) as running:
        assert await asyncio.wait_for(running.process.wait(), LIMIT_S) == 1
        lines = [line for line in running.stderr().splitlines() if not line.startswith("{")]
        assert len(lines) == 1
        assert "keys.json" in lines[0]


async def test_sigterm_lets_a_stream_finish(tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(_: tokenizer_pb2.TextRequest, send: Callable[[Delta], None]) -> None:
        send(Delta(text="Hel", num_tokens=1))
        await go_on.wait()
        send(last("lo", usage=usage(2)))

    tokenizer.script = script
    async with (
        gateway_process(tokenizer, tmp_path, QUIRE_API_KEY="k") as running,
        running.ready() as http,
        http.stream(
            "POST",
            "/v1/completions",
            json={"prompt": "Hi", "stream": True},
            headers={"Authorization": "Bearer k"},
        ) as response,
    ):
        chunks = response.aiter_text()
        text = await anext(chunks)
        running.process.send_signal(signal.SIGTERM)
        await running.answers(http, 503)
        go_on.set()
        text += "".join([chunk async for chunk in chunks])
        assert '"lo"' in text
        assert text.endswith("data: [DONE]\n\n")
        assert await asyncio.wait_for(running.process.wait(), LIMIT_S) == 0


async def test_sigterm_turns_readiness_off_before_it_refuses(
    tokenizer: FakeTokenizer, tmp_path: Path
) -> None:
    flags = ("--leave-delay-s", "3600", "--grace-s", "3600")
    async with (
        gateway_process(tokenizer, tmp_path, *flags, QUIRE_API_KEY="k") as running,
        running.ready() as http,
    ):
        running.process.send_signal(signal.SIGTERM)
        await running.answers(http, 503)
        body, headers = {"prompt": "Hi"}, {"Authorization": "Bearer k"}
        taken = await http.post("/v1/completions", json=body, headers=headers)
        assert (taken.status_code, taken.headers["Connection"]) == (200, "close")
        running.process.send_signal(signal.SIGTERM)  # who asks twice does not want to wait
        assert await asyncio.wait_for(running.process.wait(), LIMIT_S) == 0


async def test_request_is_one_trace_under_the_clients_own(tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"Authorization": "Bearer k", "traceparent": f"00-{trace_id}-{parent_id}-01"}
    async with otlp_receiver() as receiver:
        flags = ("--otlp-endpoint", receiver.endpoint)
        async with (
            gateway_process(tokenizer, tmp_path, *flags, QUIRE_API_KEY="k") as running,
            running.ready() as http,
        ):
            body = {"prompt": "Hi", "stream": True, "max_tokens": 9, "temperature": 0.5}
            assert (await http.post("/v1/completions", json=body, headers=headers)).status_code == 200
            running.process.terminate()
            assert await running.process.wait() == 0
        await until(lambda: len(receiver.spans) >= 2)
    spans: dict[str, ReceivedSpan] = {span.name: span for span in receiver.spans}
    assert set(spans) == {"POST /v1/completions", "receive"}
    root, receive = spans["POST /v1/completions"], spans["receive"]
    assert (root.trace_id, root.parent_span_id) == (trace_id, parent_id)
    assert (receive.trace_id, receive.parent_span_id) == (trace_id, root.span_id)
    assert root.attributes["gen_ai.request.model"] == "tiny"
    assert root.attributes["gen_ai.usage.input_tokens"] == 5
    assert root.attributes["gen_ai.usage.output_tokens"] == 3
    assert root.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert root.attributes["gen_ai.request.max_tokens"] == 9
    assert root.attributes["gen_ai.response.time_to_first_chunk"] > 0  # type: ignore[operator]
    assert root.attributes["http.response.status_code"] == 200
    assert tokenizer.requests[0].trace.traceparent == f"00-{trace_id}-{root.span_id}-01"
