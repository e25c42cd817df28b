"""The Tokenizer service: sessions with gateways, calls for outside clients, and the process around them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog

from quire.errors import InvalidRequest, NotReady, QuireError, from_proto
from quire.model_files import resolve_model
from quire.packing import pack_int32, unpack_int32
from quire.redis_client import open_redis
from quire.rpc.server import RpcServer
from quire.service import Shutdown, end_tasks
from quire.v1 import tokenizer_pb2, tokenizer_pb2_grpc, types_pb2
from tokenizer_svc import metrics
from tokenizer_svc.chat_template import render
from tokenizer_svc.generation import Generation
from tokenizer_svc.schedulers import Schedulers
from tokenizer_svc.session import GatewaySession
from tokenizer_svc.settings import TokenizerSettings
from tokenizer_svc.text_tokenizer import TextTokenizer

log = structlog.get_logger()

SERVICE_NAME = tokenizer_pb2.DESCRIPTOR.services_by_name["Tokenizer"].full_name
Context = grpc.aio.ServicerContext[Any, Any]
_CHEAP_CHARS = 8192


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServicer):
    """Listens at once; takes requests when its tokenizer is loaded and the scheduler is ready."""

    def __init__(
        self, settings: TokenizerSettings, shutdown: Shutdown, *, on_loaded: Callable[[], None] | None = None
    ) -> None:
        self._settings = settings
        self._shutdown = shutdown
        self._on_loaded = on_loaded
        self.rpc = RpcServer(settings.listen)
        tokenizer_pb2_grpc.add_TokenizerServicer_to_server(self, self.rpc.server)
        self._redis = open_redis(settings.redis_url) if settings.redis_url else None
        self._schedulers = Schedulers(
            settings.schedulers,
            self._redis,
            resume_s=settings.resume_s,
            on_batch=self._flush_sessions,
            on_announcement=self._announce,
        )
        self._generation = Generation(
            self._schedulers, threads=settings.threads, max_prompt_chars=settings.max_prompt_chars
        )
        self._sessions: set[GatewaySession] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._num_calls = 0
        self._draining = False
        self._drained = asyncio.Event()

    # -- the process

    async def start(self) -> None:
        """Listen, load in a thread, and keep the scheduler's session up."""
        await self.rpc.start([SERVICE_NAME])
        self._tasks = [
            asyncio.create_task(self._load(), name="load"),
            asyncio.create_task(self._schedulers.run(), name="schedulers"),
        ]

    async def drain(self) -> None:
        """Refuse new calls, and tell sessions; return when what is in progress has ended.

        What a session brings before its peer has heard of it is served, or goes on elsewhere when the session ends.
        """
        self._draining = True
        self._announce()
        await self.rpc.set_serving(False)
        self._note_progress()
        await self._drained.wait()

    async def stop(self) -> None:
        """Close everything."""
        await end_tasks(self._tasks)
        await self.rpc.stop(0)
        if self._redis is not None:
            await self._redis.aclose()
        self._generation.close()

    async def _load(self) -> None:
        try:
            directory = await asyncio.to_thread(resolve_model, self._settings.model, weights=False)
            tokenizer = await asyncio.to_thread(TextTokenizer, directory)
        except QuireError as error:
            self._shutdown.fail(error.message)
            return
        except Exception as error:  # whatever a broken checkpoint makes the library raise
            log.error("loading the tokenizer failed", exc_info=error)
            self._shutdown.fail(f"cannot load the tokenizer of {self._settings.model}: {error}")
            return
        self._generation.use(tokenizer)
        if self._on_loaded is not None:
            self._on_loaded()
        await self.rpc.set_serving(True)
        self._announce()

    def _state(self) -> types_pb2.ServiceState.ValueType:
        if self._draining:
            return types_pb2.SERVICE_STATE_DRAINING
        if self._generation.loaded and self._schedulers.takes_requests:
            return types_pb2.SERVICE_STATE_READY
        return types_pb2.SERVICE_STATE_STARTING

    def _announcement(self) -> tokenizer_pb2.TokenizerAnnouncement:
        theirs = self._schedulers.announcement
        return tokenizer_pb2.TokenizerAnnouncement(
            state=self._state(), model=self._generation.model, load_progress=theirs.load_progress
        )

    def _announce(self) -> None:
        for session in self._sessions:
            session.announce(self._announcement())

    def _flush_sessions(self) -> None:
        for session in self._sessions:
            session.flush()
        self._note_progress()

    def _note_progress(self) -> None:
        metrics.requests_running.set(self._schedulers.num_live)
        if self._draining and self._schedulers.num_live == 0 and self._num_calls == 0:
            self._drained.set()

    # -- the calls

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[tokenizer_pb2.TokenizerSessionRequest], context: Context
    ) -> AsyncIterator[tokenizer_pb2.TokenizerSessionResponse]:
        """One gateway process; when it is gone, its requests are."""
        session = GatewaySession(self._generation, self._schedulers)
        self._sessions.add(session)
        metrics.sessions.set(len(self._sessions))
        session.announce(self._announcement())
        reader = asyncio.create_task(session.read(request_iterator), name="gateway session")
        try:
            async for message in session.outbox:
                yield message
        finally:
            reader.cancel()
            self._sessions.discard(session)
            metrics.sessions.set(len(self._sessions))
            session.close()
            self._note_progress()

    async def Generate(  # noqa: N802
        self, request: tokenizer_pb2.TextRequest, context: Context
    ) -> AsyncIterator[tokenizer_pb2.TextDelta]:
        """One request of an outside client; leaving the stream cancels it."""
        if self._draining:
            raise NotReady("the tokenizer service is shutting down; try again", retry_after_s=1.0)
        session = GatewaySession(self._generation, self._schedulers)
        self._sessions.add(session)
        self._num_calls += 1
        try:
            if not request.resumed:
                # Nobody's word is needed for what is new here.
                request.ledger_id = ""
            live = await self._generation.submit(request, session.new_delta(0))
            session.adopt(0, live)
            if live.is_over:
                session.flush()
            num_open = len(live.sequences)
            async for message in session.outbox:
                for delta in message.deltas:
                    if delta.HasField("error"):
                        raise from_proto(delta.error)
                    num_open -= bool(delta.finish_reason)
                    yield delta
                if num_open == 0:
                    return
        finally:
            self._num_calls -= 1
            self._sessions.discard(session)
            session.close()
            self._note_progress()

    async def Tokenize(  # noqa: N802
        self, request: tokenizer_pb2.TokenizeRequest, context: Context
    ) -> tokenizer_pb2.TokenizeResponse:
        """Text or a chat to token ids."""
        tokenizer, model = self._generation.tokenizer, self._generation.model
        limit = self._settings.max_prompt_chars

        def tokenize() -> list[int]:
            if request.WhichOneof("input") == "chat":
                text = render(tokenizer, request.chat, max_chars=limit)
                return tokenizer.encode(text, add_special_tokens=False)
            add_special = request.add_special_tokens if request.HasField("add_special_tokens") else True
            return tokenizer.encode(request.text, add_special_tokens=add_special)

        is_cheap = len(request.text) + len(request.chat.messages_json) < _CHEAP_CHARS
        ids = await self._generation.call(is_cheap, tokenize)
        return tokenizer_pb2.TokenizeResponse(
            token_ids=pack_int32(ids), max_model_len=model.max_model_len if model is not None else 0
        )

    async def Detokenize(  # noqa: N802
        self, request: tokenizer_pb2.DetokenizeRequest, context: Context
    ) -> tokenizer_pb2.DetokenizeResponse:
        """Token ids to text."""
        tokenizer = self._generation.tokenizer
        try:
            ids = unpack_int32(request.token_ids).tolist()
        except ValueError:
            raise InvalidRequest("the bytes of token_ids are not int32", param="tokens") from None
        if any(not 0 <= token < tokenizer.vocab_size for token in ids):
            raise InvalidRequest(f"token ids must be from 0 to {tokenizer.vocab_size - 1}", param="tokens")
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        text = await self._generation.call(
            len(ids) < _CHEAP_CHARS, lambda: tokenizer.decode(ids, skip_special_tokens=skip)
        )
        return tokenizer_pb2.DetokenizeResponse(text=text)

    async def RenderChat(  # noqa: N802
        self, request: tokenizer_pb2.RenderChatRequest, context: Context
    ) -> tokenizer_pb2.RenderChatResponse:
        """A chat to prompt text."""
        tokenizer = self._generation.tokenizer
        limit = self._settings.max_prompt_chars
        is_cheap = len(request.chat.messages_json) < _CHEAP_CHARS
        text = await self._generation.call(is_cheap, lambda: render(tokenizer, request.chat, max_chars=limit))
        return tokenizer_pb2.RenderChatResponse(text=text)

    async def GetStatus(  # noqa: N802
        self, request: types_pb2.GetStatusRequest, context: Context
    ) -> tokenizer_pb2.TokenizerStatus:
        """What the service is doing."""
        return tokenizer_pb2.TokenizerStatus(
            state=self._state(),
            model=self._generation.model,
            requests_running=self._schedulers.num_live,
            sessions=len(self._sessions),
            schedulers_ready=self._schedulers.num_ready,
        )

    async def Drain(  # noqa: N802
        self, request: types_pb2.DrainRequest, context: Context
    ) -> types_pb2.DrainResponse:
        """Begin to leave."""
        self._shutdown.drain(request.timeout_s)
        return types_pb2.DrainResponse(num_requests=self._schedulers.num_live)
