"""The schedulers: which are there, which gets a request, and what becomes of requests whose scheduler is lost.

A new request goes to the ready scheduler with the fewest of this process's; it may send it on to the one whose
replicas serve it best. A request whose scheduler is lost goes on at another, or at the same one when it is back,
with its tokens so far; `resume_s` seconds after its first loss without a token since it ends with one retryable
error. A scheduler that has lost its last worker holds its requests until one is back; if there is another that has
workers, they go on there. New requests wait as long as `resume_s`, if none is ready but one was within the last so
many seconds: a scheduler that is started again, or that loses its only worker for a moment, refuses nobody.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf

import redis.asyncio as redis
import structlog

from quire.errors import DeadlineExceeded, NotReady, QuireError
from quire.redis_client import RedisFailure
from quire.registry import HEARTBEAT_S, Record, members, text_of
from quire.v1 import scheduler_pb2, types_pb2
from tokenizer_svc import metrics
from tokenizer_svc.live_request import LiveRequest
from tokenizer_svc.scheduler_session import SchedulerSession

log = structlog.get_logger()

_AWAY = "the scheduler is away; try again"
_NO_WORKER = "no worker is ready; try again"
# A broken stream between scheduler and worker opens again after 0.05 s, 0.1 s and 0.2 s, and its requests find their
# caches; elsewhere they are computed again.
STRANDED_S = 0.5


class Schedulers:
    """`on_batch` runs after each message with tokens, `on_announcement` after each change of a scheduler's state."""

    def __init__(
        self,
        addresses: Sequence[str],
        registry: redis.Redis | None,
        *,
        resume_s: float,
        on_batch: Callable[[], None],
        on_announcement: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._static = tuple(dict.fromkeys(addresses))
        self._resume_s = resume_s
        self._on_batch = on_batch
        self._on_announcement = on_announcement
        self._sessions: dict[str, SchedulerSession] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._homeless: dict[LiveRequest, asyncio.TimerHandle] = {}
        """Requests that no scheduler has, and when they are given up."""
        self._missed_since: float | None = -inf
        """When (monotonic seconds) the last one that was ready went; None while one is."""
        self.model: types_pb2.ModelDescription | None = None
        """The served model, as the latest scheduler that knew one said."""

    @property
    def num_ready(self) -> int:
        """Schedulers that would take a request."""
        return sum(session.ready for session in self._sessions.values())

    @property
    def takes_requests(self) -> bool:
        """Whether a new request is served: now, or when the scheduler is back that was there a moment ago."""
        return self._missed_since is None or time.monotonic() - self._missed_since < self._resume_s

    @property
    def announcement(self) -> scheduler_pb2.SchedulerAnnouncement:
        """What a scheduler said of itself: a ready one's word, else one that knows the model."""
        sessions = sorted(
            self._sessions.values(),
            key=lambda s: (not s.ready, not s.announcement.HasField("model"), s.address),
        )
        return sessions[0].announcement if sessions else scheduler_pb2.SchedulerAnnouncement()

    @property
    def num_live(self) -> int:
        """Requests in progress."""
        return sum(session.num_live for session in self._sessions.values()) + len(self._homeless)

    async def run(self) -> None:
        """Keep sessions up with every scheduler there is, until cancelled."""
        for address in self._static:
            self._open(address)
        try:
            while True:
                if self._registry is not None:
                    await self._look_around(self._registry)
                self._rehouse_all()
                self._move_stranded()
                await asyncio.sleep(HEARTBEAT_S)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def submit(self, live: LiveRequest) -> None:
        """Send a request, new here, or keep it for a moment. Raises NotReady when no scheduler would take it."""
        session = self._best()
        if session is not None:
            session.submit(live, live.resumed_request() if live.has_tokens else live.token_request)
        elif self.takes_requests:
            self._make_homeless(live)
        else:
            is_connected = any(session.connected for session in self._sessions.values())
            raise NotReady(_NO_WORKER if is_connected else _AWAY, retry_after_s=1.0)

    def cancel(self, live: LiveRequest) -> None:
        """Stop a request; nothing happens if it is over."""
        live.close()
        timer = self._homeless.pop(live, None)
        if timer is not None:
            timer.cancel()
            return
        for session in self._sessions.values():
            if session.cancel(live):
                return

    # -- what sessions say

    def took_batch(self) -> None:
        """See `SessionEvents`."""
        self._on_batch()

    def announced(self) -> None:
        """See `SessionEvents`."""
        self._rehouse_all()
        self._move_stranded()
        metrics.schedulers_ready.set(self.num_ready)
        announcement = self.announcement
        if announcement.HasField("model"):
            self.model = announcement.model
        if self.num_ready:
            self._missed_since = None
        elif self._missed_since is None:
            self._missed_since = time.monotonic()
            asyncio.get_running_loop().call_later(self._resume_s, self._on_announcement)
        self._on_announcement()

    def lost(self, live: LiveRequest, address: str) -> None:
        """See `SessionEvents`."""
        is_first_loss = live.lost_since is None
        self._make_homeless(live)
        # The one that has just let go of it is asked again a little later, and so are all when another did too.
        if is_first_loss:
            self._rehouse(live, but=address)
        self._on_batch()

    def returned(self, live: LiveRequest, address: str, error: types_pb2.Error) -> None:
        """See `SessionEvents`."""
        if self._sessions[address].stranded_since is not None and self._best() is None:
            # It has held the request for as long as it would, and nobody else is there.
            live.fail(error)
        else:
            self.lost(live, address)

    def redirected(self, live: LiveRequest, address: str) -> None:
        """See `SessionEvents`."""
        session = self._sessions.get(address)
        if session is None or not session.ready:
            self.lost(live, address)
            return
        request = live.resumed_request()
        request.redirected = True
        session.submit(live, request)

    # -- inside

    def _best(self, but: str = "") -> SchedulerSession | None:
        ready = [session for session in self._sessions.values() if session.ready and session.address != but]
        return min(ready, key=lambda session: (session.num_live, session.address), default=None)

    def _make_homeless(self, live: LiveRequest) -> None:
        if live.lost_since is None:
            live.lost_since = time.monotonic()
        left_s = min(live.lost_since + self._resume_s - time.monotonic(), live.left_s)
        self._homeless[live] = asyncio.get_running_loop().call_later(left_s, self._give_up, live)

    def _rehouse_all(self) -> None:
        for live in list(self._homeless):
            self._rehouse(live)

    def _rehouse(self, live: LiveRequest, but: str = "") -> None:
        """Submit a request again, with all that it has, if there is a scheduler for it."""
        session = self._best(but)
        if session is None:
            return
        self._homeless.pop(live).cancel()
        session.submit(live, live.resumed_request())
        metrics.requests_resumed.inc()

    def _move_stranded(self) -> None:
        """Take requests from schedulers without a worker to those that have some."""
        for session in self._sessions.values():
            since = session.stranded_since
            if since is None or not session.num_live or time.monotonic() - since < STRANDED_S:
                continue
            if self._best() is None:
                return
            log.warning("a scheduler has no worker", address=session.address, requests=session.num_live)
            for live in session.take_back():
                self._make_homeless(live)
                self._rehouse(live)
            self._on_batch()

    def _give_up(self, live: LiveRequest) -> None:
        del self._homeless[live]
        error: QuireError = NotReady(
            "the scheduler was lost and did not come back in time; try again", retry_after_s=5.0
        )
        if live.left_s <= 0:
            error = DeadlineExceeded(
                "the request's deadline passed while its scheduler was lost", param="timeout"
            )
        live.fail(error.to_proto())
        self._on_batch()

    def _open(self, address: str) -> None:
        session = self._sessions[address] = SchedulerSession(address, self)
        self._tasks[address] = asyncio.create_task(session.run(), name=f"scheduler {address}")

    async def _look_around(self, registry: redis.Redis) -> None:
        """Open sessions with schedulers that have come; close those of schedulers that have gone."""
        try:
            records = await members(registry, "scheduler")
        except RedisFailure as error:
            log.debug("redis is away: schedulers stay as they are", error=str(error))
            return
        known = {*_addresses(records), *self._static}
        for address in known - self._sessions.keys():
            self._open(address)
        for address in self._sessions.keys() - known:
            if not self._sessions[address].connected:
                self._tasks.pop(address).cancel()
                del self._sessions[address]


def _addresses(records: Mapping[str, Record]) -> set[str]:
    found = set()
    for scheduler, record in records.items():
        try:
            found.add(text_of(record, "address"))
        except (KeyError, ValueError):
            log.error("a scheduler's record cannot be read", scheduler=scheduler)
    return found
