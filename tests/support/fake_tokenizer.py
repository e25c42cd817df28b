"""A tokenizer service that says what a test tells it to: the real protocol over a real socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from quire.errors import InvalidRequest, QuireError
from quire.packing import pack_int32, unpack_int32
from quire.rpc.server import RpcServer
from quire.v1 import tokenizer_pb2, tokenizer_pb2_grpc, types_pb2

VOCAB_SIZE = 1000
MAX_MODEL_LEN = 4096
SERVICE = "quire.v1.Tokenizer"

Delta = tokenizer_pb2.TextDelta
STOP = types_pb2.FINISH_REASON_STOP
LENGTH = types_pb2.FINISH_REASON_LENGTH

# Answers a request: sends deltas, which get their handle from the session.
Script = Callable[[tokenizer_pb2.TextRequest, Callable[[tokenizer_pb2.TextDelta], None]], Awaitable[None]]


def model_description(name: str = "tiny") -> types_pb2.ModelDescription:
    """The model that fakes serve."""
    return types_pb2.ModelDescription(
        name=name,
        source=f"models/{name}",
        revision="1",
        architecture="LlamaForCausalLM",
        vocab_size=VOCAB_SIZE,
        max_model_len=MAX_MODEL_LEN,
        dtype="float32",
    )


def last(text: str = "", *, sequence: int = 0, num_tokens: int = 1, **fields: object) -> Delta:
    """A sequence's last delta."""
    finish: dict[str, object] = {"finish_reason": STOP, "usage": usage(num_tokens), **fields}
    return Delta(sequence=sequence, text=text, num_tokens=num_tokens, **finish)  # type: ignore[arg-type]


def usage(completion_tokens: int, **fields: int) -> types_pb2.Usage:
    """A ledger of a prompt of five tokens, two of them cached."""
    ledger = types_pb2.Usage(prompt_tokens=5, cached_tokens=2, completion_tokens=completion_tokens)
    ledger.MergeFrom(types_pb2.Usage(queue_s=0.01, prefill_s=0.02, decode_s=0.1, **fields))
    return ledger


async def hello(request: tokenizer_pb2.TextRequest, send: Callable[[Delta], None]) -> None:
    """`Hello there!` in three tokens for each sequence; refuses what the real service would."""
    if request.WhichOneof("prompt") == "token_ids" and (unpack_int32(request.token_ids) >= VOCAB_SIZE).any():
        raise InvalidRequest(f"token ids must be below {VOCAB_SIZE}", param="prompt")
    for sequence in range(request.n):
        if request.stream:
            send(Delta(sequence=sequence, text="Hello", num_tokens=1, prompt_tokens=5))
            send(Delta(sequence=sequence, text=" there", num_tokens=1))
            send(last("!", sequence=sequence, usage=usage(3), stop_token_id=2))
        else:
            send(last("Hello there!", sequence=sequence, num_tokens=3, stop_token_id=2))


class FakeTokenizer(tokenizer_pb2_grpc.TokenizerServicer):
    """Serves `script`; `requests` and `cancelled` say what it was asked."""

    def __init__(self, listen: str = "127.0.0.1:0", *, model: str = "tiny") -> None:
        self.script: Script = hello
        self.requests: list[tokenizer_pb2.TextRequest] = []
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.submitted: asyncio.Queue[tokenizer_pb2.TextRequest] = asyncio.Queue()
        self.announcement = tokenizer_pb2.TokenizerAnnouncement(
            state=types_pb2.SERVICE_STATE_READY, model=model_description(model), load_progress=1.0
        )
        self._server = RpcServer(listen)
        self._sessions: set[asyncio.Queue[tokenizer_pb2.TokenizerSessionResponse | None]] = set()

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    async def start(self) -> None:
        """Listen."""
        tokenizer_pb2_grpc.add_TokenizerServicer_to_server(self, self._server.server)
        await self._server.start([SERVICE])

    async def stop(self) -> None:
        """Go away; sessions break."""
        await self._server.stop(0)

    def announce(self, state: types_pb2.ServiceState.ValueType, progress: float = 1.0) -> None:
        """Change state and tell every session."""
        self.announcement.state = state
        self.announcement.load_progress = progress
        for outbox in self._sessions:
            outbox.put_nowait(tokenizer_pb2.TokenizerSessionResponse(announcement=self.announcement))

    def drop_sessions(self) -> None:
        """End every session, as a crash would; clients may connect again."""
        for outbox in self._sessions:
            outbox.put_nowait(None)

    async def Session(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[tokenizer_pb2.TokenizerSessionRequest],
        context: grpc.aio.ServicerContext[object, object],
    ) -> AsyncIterator[tokenizer_pb2.TokenizerSessionResponse]:
        """The multiplexed stream of one gateway."""
        outbox: asyncio.Queue[tokenizer_pb2.TokenizerSessionResponse | None] = asyncio.Queue()
        running: dict[int, asyncio.Task[None]] = {}
        ids: dict[int, str] = {}

        async def read() -> None:
            async for message in request_iterator:
                if message.HasField("submit"):
                    request = message.submit.request
                    ids[message.submit.handle] = request.request_id
                    self.requests.append(request)
                    self.submitted.put_nowait(request)
                    answering = self._answer(message.submit.handle, request, outbox)
                    running[message.submit.handle] = asyncio.create_task(answering)
                else:
                    running[message.cancel.handle].cancel()
                    self.cancelled.put_nowait(ids[message.cancel.handle])

        reader = asyncio.create_task(read())
        self._sessions.add(outbox)
        try:
            yield tokenizer_pb2.TokenizerSessionResponse(announcement=self.announcement)
            while (message := await outbox.get()) is not None:
                yield message
        finally:
            self._sessions.discard(outbox)
            for task in (reader, *running.values()):
                task.cancel()
            await asyncio.gather(reader, *running.values(), return_exceptions=True)

    async def _answer(
        self,
        handle: int,
        request: tokenizer_pb2.TextRequest,
        outbox: "asyncio.Queue[tokenizer_pb2.TokenizerSessionResponse | None]",
    ) -> None:
        def send(delta: Delta) -> None:
            delta.handle = handle
            outbox.put_nowait(tokenizer_pb2.TokenizerSessionResponse(deltas=[delta]))

        with contextlib.suppress(asyncio.CancelledError):
            try:
                await self.script(request, send)
            except QuireError as error:
                send(Delta(finish_reason=types_pb2.FINISH_REASON_ERROR, error=error.to_proto()))

    async def Tokenize(  # type: ignore[override]
        self, request: tokenizer_pb2.TokenizeRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> tokenizer_pb2.TokenizeResponse:
        """One token per byte."""
        text = request.text if request.HasField("text") else request.chat.messages_json
        return tokenizer_pb2.TokenizeResponse(
            token_ids=pack_int32(list(text.encode())), max_model_len=MAX_MODEL_LEN
        )

    async def Detokenize(  # type: ignore[override]
        self, request: tokenizer_pb2.DetokenizeRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> tokenizer_pb2.DetokenizeResponse:
        """The inverse of Tokenize."""
        token_ids = unpack_int32(request.token_ids)
        if (token_ids >= 256).any():
            raise InvalidRequest("token ids must be below 256", param="tokens")
        return tokenizer_pb2.DetokenizeResponse(text=bytes(token_ids.tolist()).decode(errors="replace"))
