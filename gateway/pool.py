"""The tokenizer services behind this gateway: which are ready, what they serve, which is least loaded."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import structlog

from gateway import metrics
from gateway.live_text import LiveText
from gateway.lookup import addresses_of
from gateway.resumption import Resumption
from gateway.tokenizer_client import TokenizerClient
from quire.errors import NotFound, NotReady
from quire.v1 import types_pb2

log = structlog.get_logger()

_LOOKUP_INTERVAL_S = 1.0


class Admission(Enum):
    """What becomes of new requests."""

    OPEN = "taken"
    LEAVING = "taken, while readiness is off already: whoever routes here has yet to notice"
    CLOSED = "refused"


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a request would be served, and if not, why."""

    ready: bool
    reason: str
    progress: float
    """Share of the weights loaded, 0 to 1."""


class TokenizerPool:
    """Keeps a session with each service behind the targets, and picks one for each request.

    A target is an address, or host:port whose name has the address of every replica and is looked up again and again.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self._behind: dict[str, frozenset[str]] = {target: frozenset() for target in targets}
        """What each target's name last stood for."""
        self._clients: dict[str, TokenizerClient] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._served: dict[str, types_pb2.ModelDescription] = {}
        """By address, what a service was ready for in this session, until it said that it is not."""
        self._resumption = Resumption(self._find, self._refusal)
        self._first_seen: dict[str, int] = {}
        self.admission = Admission.OPEN

    async def run(self) -> None:
        """Keep the sessions up until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._look_around(group)
                await asyncio.sleep(_LOOKUP_INTERVAL_S)

    def choose(self, model: str | None) -> TokenizerClient:
        """The least loaded service that is ready and serves `model` (None: any).

        Raises NotFound for a model that none serves, NotReady when those that serve it cannot take a request.
        """
        client = self._chosen(model)
        if client is None:
            raise self._refusal()
        return client

    def find_model(self, name: str | None) -> types_pb2.ModelDescription:
        """What a request for `name` (None: any) is to be submitted for: a model that is served, or was a moment ago.

        Raises as `choose` does.
        """
        client = self._chosen(name)
        if client is not None:
            return client.announcement.model
        for model in self._resumption.awaited.values():
            if name in (None, model.name):
                return model
        raise self._refusal()

    def submit(self, live: LiveText) -> None:
        """Send a new request to the least loaded service of its model, or keep it until there is one."""
        client = self._same(live.model)
        if client is None:
            self._resumption.keep(live)
        else:
            client.submit(live)

    def models(self) -> dict[str, types_pb2.ModelDescription]:
        """What is served, by name; loading models included, and those that are away for a moment."""
        found = {client.announcement.model.name: client.announcement.model for client in self._known()}
        return self._resumption.awaited | found

    def first_seen(self, model: str) -> int:
        """Unix time at which this process first heard of `model`."""
        return self._first_seen.get(model, int(time.time()))

    @property
    def leaving(self) -> bool:
        """Whether this process ends soon."""
        return self.admission is not Admission.OPEN

    def readiness(self) -> Readiness:
        """Whether some request would be served: now, or when the service is back that was there a moment ago."""
        if self.leaving:
            return Readiness(False, "shutting down", 1.0)
        if self.num_ready() or self._resumption.awaited:
            return Readiness(True, "ready", 1.0)
        return self._unreadiness()

    def num_ready(self) -> int:
        """Services that would take a request."""
        return sum(client.ready for client in self._clients.values())

    def num_live(self) -> int:
        """Requests in progress."""
        return sum(client.num_live for client in self._clients.values()) + self._resumption.num_live

    def fail_all(self, message: str) -> None:
        """End what still runs, with a retryable error."""
        error = NotReady(message, retry_after_s=1.0)
        self._resumption.fail_all(error)
        for client in self._clients.values():
            client.fail_all(error)

    def _unreadiness(self) -> Readiness:
        """What the services say that are not ready."""
        up = [client for client in self._clients.values() if client.connected and not client.ready]
        if not up:
            return Readiness(False, "no tokenizer service is connected", 0.0)
        if all(client.announcement.state == types_pb2.SERVICE_STATE_DRAINING for client in up):
            return Readiness(False, "the tokenizer service is draining", 1.0)
        progress = max(client.announcement.load_progress for client in up)
        if progress == 0.0 and any(client.announcement.HasField("model") for client in up):
            return Readiness(False, "no scheduler has a worker", progress)
        return Readiness(False, "the model is loading", progress)

    def _refusal(self) -> NotReady:
        return NotReady(
            f"the server is not ready: {self._unreadiness().reason}; try again", retry_after_s=1.0
        )

    def _chosen(self, model: str | None) -> TokenizerClient | None:
        if self.admission is Admission.CLOSED:
            raise NotReady("the server is shutting down; try again", retry_after_s=1.0)
        known = self.models()
        if model is not None and known and model not in known:
            names = ", ".join(repr(name) for name in known)
            raise NotFound(
                f"the model {model[:128]!r} does not exist; this server has {names}", param="model"
            )
        return self._least_loaded(lambda served: model in (None, served.name))

    def _find(self, live: LiveText) -> TokenizerClient | None:
        """A service for a homeless request: of the same weights where another one was lost with it."""
        if live.was_lost:
            return self._same(live.model)
        return self._least_loaded(lambda served: served.name == live.model.name)

    def _same(self, model: types_pb2.ModelDescription) -> TokenizerClient | None:
        """A service of this very model."""
        identity = fingerprint(model)
        return self._least_loaded(lambda served: fingerprint(served) == identity)

    def _least_loaded(self, is_right: Callable[[types_pb2.ModelDescription], bool]) -> TokenizerClient | None:
        ready = [
            client
            for client in self._clients.values()
            if client.ready and is_right(client.announcement.model)
        ]
        return min(ready, key=lambda client: client.num_live, default=None)

    async def _look_around(self, group: asyncio.TaskGroup) -> None:
        """Open sessions with services that have come; close those of services that have gone."""
        for target in self._behind:
            try:
                self._behind[target] = await addresses_of(target)
            except OSError as error:
                # Those that it stood for may live all the same: their sessions say so.
                log.debug("a name cannot be looked up", target=target, error=str(error))
        there = frozenset().union(*self._behind.values())
        for address in there - self._clients.keys():
            client = self._clients[address] = TokenizerClient(
                address, on_change=self._changed, on_loss=self._resumption.take
            )
            self._tasks[address] = group.create_task(client.run(), name=f"session {address}")
        for address in self._clients.keys() - there:
            # One that leaves loses its name first, and finishes what it has.
            if not self._clients[address].connected:
                self._tasks.pop(address).cancel()
                del self._clients[address]

    def _known(self) -> Iterator[TokenizerClient]:
        return (client for client in self._clients.values() if client.announcement.HasField("model"))

    def _changed(self, client: TokenizerClient) -> None:
        metrics.sessions_connected.set(sum(client.connected for client in self._clients.values()))
        for name in self.models():
            self._first_seen.setdefault(name, int(time.time()))
        if client.ready:
            self._served[client.address] = client.announcement.model
            self._resumption.welcome(client.announcement.model)
        elif client.address in self._served:
            self._note_absence(client)

    def _note_absence(self, client: TokenizerClient) -> None:
        """One that was ready is not. If it leaves or is lost, it may be back soon, and is missed where it was the last.

        One that stays and says that it is not ready has itself kept requests, for as long as that makes sense.
        """
        draining = client.announcement.state == types_pb2.SERVICE_STATE_DRAINING
        model = self._served[client.address]
        if not draining:
            del self._served[client.address]
        goes = draining or not client.connected
        if goes and self._least_loaded(lambda served: served.name == model.name) is None:
            self._resumption.miss(model)


def fingerprint(model: types_pb2.ModelDescription) -> str:
    """OpenAI's `system_fingerprint`: changes with the weights that answer."""
    identity = f"{model.name}\0{model.revision}\0{model.architecture}\0{model.dtype}"
    return "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:10]
