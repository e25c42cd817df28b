"""New requests while no tokenizer service is ready that was a moment ago: they wait for it, as running ones do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway import resumption
from gateway.live_text import LiveText
from gateway.pool import Admission, fingerprint
from gateway.resumption import Resumption
from gateway.server import GatewayService
from gateway.settings import GatewaySettings
from quire.errors import NotReady, QuireError
from quire.service import Shutdown
from quire.v1 import tokenizer_pb2, types_pb2
from tests.gateway.conftest import API_KEY, RunningGateway, events_of, running_service
from tests.support.fake_tokenizer import FakeTokenizer, model_description
from tests.support.until import until
from tests.support.virtual_time import VirtualTimeLoop

DRAINING, STARTING = types_pb2.SERVICE_STATE_DRAINING, types_pb2.SERVICE_STATE_STARTING
PROMPT = {"prompt": "Hi"}
Start = Callable[..., Awaitable[FakeTokenizer]]


async def lose(gateway: RunningGateway) -> None:
    """Its only service dies, and the gateway sees it."""
    await gateway.tokenizer.stop()
    await until(lambda: gateway.service.pool.num_ready() == 0)


async def held(gateway: RunningGateway, path: str = "/v1/completions", **body: object) -> asyncio.Task[Any]:
    """A request that waits in the gateway."""
    waiting = gateway.service.pool.num_live()
    answer = asyncio.create_task(gateway.http.post(path, json={**PROMPT, **body}))
    await until(lambda: answer.done() or gateway.service.pool.num_live() > waiting)
    assert not answer.done(), answer.result().text
    return answer


def client_of(service: GatewayService) -> httpx2.AsyncClient:
    """One that knows its key."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    return httpx2.AsyncClient(base_url=f"http://{service.address}", headers=headers, timeout=20)


@pytest.fixture
async def start_again(tokenizer: FakeTokenizer) -> AsyncIterator[Start]:
    """Starts a service where the lost one was."""
    started = []

    async def start(**fields: str) -> FakeTokenizer:
        again = FakeTokenizer(tokenizer.address)
        again.announcement.model.MergeFrom(types_pb2.ModelDescription(**fields))  # type: ignore[arg-type]
        await again.start()
        started.append(again)
        return again

    yield start
    for again in started:
        await again.stop()


async def test_requests_wait_for_a_service_that_is_started_again(
    gateway: RunningGateway, start_again: Start
) -> None:
    await lose(gateway)
    assert (await gateway.http.get("/health/ready")).status_code == 200
    whole = await held(gateway, prompt=["Hi", "Ho"], n=2)
    assert gateway.service.pool.num_live() == 2
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    stream = asyncio.create_task(events_of(gateway, "/v1/chat/completions", chat))
    await until(lambda: gateway.service.pool.num_live() == 3)
    again = await start_again()
    assert [choice["text"] for choice in (await whole).json()["choices"]] == ["Hello there!"] * 4
    assert "".join(await stream).count("Hello") == 1
    assert [len(request.resumed) for request in again.requests] == [0, 0, 0]
    assert (await gateway.http.post("/v1/completions", json=PROMPT)).status_code == 200
    assert gateway.service.pool.num_live() == 0


async def test_requests_wait_while_the_only_service_drains_and_when_it_has_gone(
    gateway: RunningGateway, start_again: Start
) -> None:
    gateway.tokenizer.announce(DRAINING)
    await until(lambda: gateway.service.pool.num_ready() == 0)
    assert gateway.service.readiness().ready
    first = await held(gateway)
    await gateway.tokenizer.stop()
    await until(lambda: gateway.service.pool._unreadiness().reason == "no tokenizer service is connected")
    second = await held(gateway)
    await start_again()
    assert [(await answer).status_code for answer in (first, second)] == [200, 200]


async def test_one_that_starts_again_is_not_yet_ready(gateway: RunningGateway, start_again: Start) -> None:
    await lose(gateway)
    answer = await held(gateway)
    again = FakeTokenizer(gateway.tokenizer.address)
    again.announcement.Clear()
    again.announcement.state = STARTING
    await again.start()
    (client,) = gateway.service.pool._clients.values()
    await until(lambda: client.connected)
    other = await held(gateway)
    assert gateway.service.readiness().ready
    again.announcement.model.CopyFrom(model_description())
    again.announce(types_pb2.SERVICE_STATE_READY)
    assert [(await each).status_code for each in (answer, other)] == [200, 200]
    await again.stop()


async def test_what_does_not_exist_is_said_at_once_and_what_does_is_listed(gateway: RunningGateway) -> None:
    before = (await gateway.http.get("/v1/models")).json()
    await lose(gateway)
    unknown = await gateway.http.post("/v1/completions", json={**PROMPT, "model": "no-such"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert (await gateway.http.get("/v1/models")).json() == before
    assert (await gateway.http.get("/v1/models/tiny")).json() == before["data"][0]


async def test_who_was_never_there_is_not_waited_for(tmp_path: Path) -> None:
    settings = GatewaySettings(
        listen="127.0.0.1:0",
        tokenizers=("127.0.0.1:1",),
        api_key=API_KEY,  # type: ignore[arg-type]
        keys_file=str(tmp_path / "keys.json"),
    )
    service = GatewayService(settings, Shutdown())
    await service.start()
    async with client_of(service) as http:
        for body in (PROMPT, {**PROMPT, "model": "tiny"}):
            refused = await http.post("/v1/completions", json=body)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert "no tokenizer service is connected; try again" in refused.text
        assert (await http.get("/health/ready")).status_code == 503
    await service.stop()


async def test_a_service_that_says_itself_that_it_is_not_ready_has_waited_already(
    gateway: RunningGateway,
) -> None:
    gateway.tokenizer.announce(STARTING, 0.0)
    await until(lambda: not gateway.service.readiness().ready)
    await lose(gateway)
    refused = await gateway.http.post("/v1/completions", json=PROMPT)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")


async def test_who_stays_away_is_one_retryable_error_and_then_no_longer_waited_for(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose(gateway)
    answer = await held(gateway)
    homeless = gateway.service.pool._resumption
    (live,) = homeless._homeless
    homeless._give_up(live)
    monkeypatch.setattr(resumption, "RESUME_S", 0.0)  # it is over
    assert (await gateway.http.get("/health/ready")).status_code == 503
    assert (await gateway.http.get("/health/live")).status_code == 200
    assert (await gateway.http.get("/v1/models")).json()["data"] == []
    for refused in (await answer, await gateway.http.post("/v1/completions", json=PROMPT)):
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "the server is not ready: no tokenizer service is connected; try again" in refused.text
    assert gateway.service.pool.num_live() == 0


async def test_a_deadline_that_passes_meanwhile_is_what_is_told(gateway: RunningGateway) -> None:
    await lose(gateway)
    late = await gateway.http.post("/v1/completions", json={**PROMPT, "timeout": 0.5})
    assert late.status_code == 504
    assert "deadline passed while its tokenizer service was away" in late.text
    assert gateway.service.pool.num_live() == 0


async def test_the_wait_counts_against_the_deadline(gateway: RunningGateway, start_again: Start) -> None:
    await lose(gateway)
    answer = await held(gateway, timeout=60)
    again = await start_again()
    assert (await answer).status_code == 200
    assert 0 < again.requests[0].timeout_s < 60


async def test_who_leaves_meanwhile_is_forgotten(gateway: RunningGateway, start_again: Start) -> None:
    await lose(gateway)
    answer = await held(gateway)
    answer.cancel()
    await until(lambda: gateway.service.pool.num_live() == 0)
    again = await start_again()
    assert (await gateway.http.post("/v1/completions", json={"prompt": "Ho"})).status_code == 200
    assert [request.text for request in again.requests] == ["Ho"]


async def test_a_gateway_that_leaves_lets_them_wait_and_at_its_end_tells_them(
    gateway: RunningGateway,
) -> None:
    await lose(gateway)
    answer = await held(gateway)
    draining = asyncio.create_task(gateway.service.drain())
    await until(lambda: gateway.service.pool.admission is Admission.CLOSED)
    refused = await gateway.http.post("/v1/completions", json=PROMPT)
    assert "shutting down" in refused.text
    assert not answer.done()
    await gateway.service.stop()
    await draining
    told = await answer
    assert (told.status_code, told.headers["Retry-After"]) == (503, "1")
    assert "shutting down; try again" in told.text


async def test_only_the_lost_model_is_waited_for(tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    other = FakeTokenizer(model="other")
    await other.start()
    both = {"tokenizers": (tokenizer.address, other.address)}
    async with running_service(tokenizer, tmp_path, both) as service, client_of(service) as http:
        gateway = RunningGateway(service, tokenizer, http, None)  # type: ignore[arg-type]
        await until(lambda: service.pool.num_ready() == 2)
        await tokenizer.stop()
        await until(lambda: service.pool.num_ready() == 1)
        waiting = await held(gateway, model="tiny")
        for model in ("other", None):
            answer = await http.post("/v1/completions", json={**PROMPT, "model": model})
            assert answer.json()["model"] == "other"
        assert {model["id"] for model in (await http.get("/v1/models")).json()["data"]} == {"tiny", "other"}
        assert not waiting.done()
        again = FakeTokenizer(tokenizer.address)
        await again.start()
        assert (await waiting).json()["model"] == "tiny"
        await again.stop()
    await other.stop()


async def test_a_service_that_loads_is_no_reason_not_to_wait_for_the_one_that_died(
    tokenizer: FakeTokenizer, tmp_path: Path
) -> None:
    loading = FakeTokenizer()
    loading.announcement.state = STARTING
    await loading.start()
    both = {"tokenizers": (tokenizer.address, loading.address)}
    async with running_service(tokenizer, tmp_path, both) as service, client_of(service) as http:
        gateway = RunningGateway(service, tokenizer, http, None)  # type: ignore[arg-type]
        await until(lambda: len([c for c in service.pool._clients.values() if c.connected]) == 2)
        await lose(gateway)
        answer = await held(gateway)
        loading.announce(types_pb2.SERVICE_STATE_READY)
        assert (await answer).status_code == 200
    await loading.stop()


async def test_new_requests_take_other_weights_of_the_same_name(
    gateway: RunningGateway, start_again: Start
) -> None:
    before = (await gateway.http.post("/v1/completions", json=PROMPT)).json()["system_fingerprint"]
    await lose(gateway)
    answer = await held(gateway)
    again = await start_again(revision="2")
    told = (await answer).json()["system_fingerprint"]
    assert told == fingerprint(again.announcement.model) != before


@pytest.mark.parametrize("gateway_settings", [{"max_requests": 1}])
async def test_those_that_wait_count_as_requests_in_progress(
    gateway: RunningGateway, start_again: Start
) -> None:
    await lose(gateway)
    answer = await held(gateway)
    assert (await gateway.http.post("/v1/completions", json=PROMPT)).status_code == 429
    await start_again()
    assert (await answer).status_code == 200


class Nobody:
    """Takes the error of a request that nobody answers."""

    def __init__(self) -> None:
        self.errors: list[QuireError] = []

    def push(self, delta: tokenizer_pb2.TextDelta) -> bool:
        """Nothing comes."""
        raise AssertionError(delta)

    def fail(self, error: QuireError) -> None:
        """The end."""
        self.errors.append(error)


def test_both_the_wait_and_the_time_in_which_it_may_begin_are_bounded() -> None:
    async def seconds() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        kept = Resumption(find=lambda _: None, refusal=lambda: NotReady("nobody is there"))
        kept.miss(model_description())
        await asyncio.sleep(resumption.RESUME_S / 2)
        assert set(kept.awaited) == {"tiny"}
        receiver = Nobody()
        kept.keep(LiveText(tokenizer_pb2.TextRequest(n=1), receiver, model_description()))
        begun_s = loop.time()
        await until(lambda: not kept.awaited, timeout_s=2 * resumption.RESUME_S)
        awaited_s = loop.time()
        await until(lambda: receiver.errors, timeout_s=2 * resumption.RESUME_S)
        assert [str(error) for error in receiver.errors] == ["nobody is there"]
        assert kept.num_live == 0
        return awaited_s, loop.time() - begun_s

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(seconds()) == pytest.approx((resumption.RESUME_S, resumption.RESUME_S), abs=0.1)
