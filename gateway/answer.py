"""The growing answer to one API call: what has come of each choice, merged until somebody takes it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.rounds import WriteRounds
from quire.errors import Internal, NotReady, Overloaded, QuireError, from_proto
from quire.packing import unpack_int32
from quire.v1 import tokenizer_pb2, types_pb2

# What a kept delta costs besides its bytes on the wire, roughly.
_DELTA_BYTES = 96


@dataclass(slots=True)
class ToolCall:
    """What has come of a tool call; `id` and `name` only where its first part is among it."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class ChoiceDelta:
    """What has come of one choice since it was last taken."""

    index: int
    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    tool_calls: dict[int, ToolCall] = field(default_factory=dict)
    num_tokens: int = 0
    prompt_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[tokenizer_pb2.TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    """OpenAI's word for why the choice ended; None while it goes on."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the choice."""
    usage: types_pb2.Usage | None = None
    """Set with `finish_reason`."""

    @property
    def text(self) -> str:
        """The new text."""
        return self.texts[0] if len(self.texts) == 1 else "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """The new reasoning text."""
        return "".join(self.reasonings)

    def add_parts(self, delta: tokenizer_pb2.TextDelta, *, keep_token_ids: bool) -> None:
        """Everything but text, which most deltas consist of.

        Messages are copied: a part of a batch keeps the whole batch alive.
        """
        if delta.reasoning:
            self.reasonings.append(delta.reasoning)
        for part in delta.tool_calls:
            call = self.tool_calls.setdefault(part.index, ToolCall())
            call.id = call.id or part.id
            call.name = call.name or part.name
            call.arguments += part.arguments
        if keep_token_ids and delta.token_ids:
            self.token_ids.extend(unpack_int32(delta.token_ids).tolist())
        for logprob in delta.logprobs:
            copy = tokenizer_pb2.TokenLogprob()
            copy.CopyFrom(logprob)
            self.logprobs.append(copy)

    def add_end(self, delta: tokenizer_pb2.TextDelta, *, called: bool) -> None:
        """The fields of a choice's last delta; `called`: the choice made tool calls."""
        name = "length" if delta.finish_reason == types_pb2.FINISH_REASON_LENGTH else "stop"
        self.finish_reason = "tool_calls" if called and name == "stop" else name
        self.usage = types_pb2.Usage()
        self.usage.CopyFrom(delta.usage)
        if delta.stop_string:
            self.stop_reason = delta.stop_string
        elif delta.HasField("stop_token_id"):
            self.stop_reason = delta.stop_token_id


class Answer:
    """Collects the deltas of all choices of one API call.

    With `max_buffered_bytes` it is a stream whose reader may be slow; more than that fails it. Without, it is
    taken whole. `on_failure` is called once, after an error has ended it.
    """

    def __init__(
        self,
        rounds: WriteRounds,
        *,
        max_buffered_bytes: int | None,
        keep_token_ids: bool,
        on_failure: Callable[[], None],
    ) -> None:
        self._rounds = rounds
        self._max_buffered_bytes = max_buffered_bytes
        self._keep_token_ids = keep_token_ids
        self._on_failure = on_failure
        self._pending: dict[int, ChoiceDelta] = {}
        self._called: set[int] = set()
        self._buffered_bytes = 0
        self._num_open = 0
        self._error: QuireError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._in_round = False
        self.num_deltas = 0

    def receiver(self, first_choice: int, num_sequences: int) -> "PromptReceiver":
        """Where the deltas of one prompt go: sequence i is choice `first_choice` + i."""
        self._num_open += num_sequences
        return PromptReceiver(self, first_choice, num_sequences)

    async def next(self) -> list[ChoiceDelta]:
        """What has come since the last call, waiting for something; empty when the answer is complete.

        Raises the QuireError that ended the answer, after what came before it.
        """
        while not self._pending:
            if self._error is not None:
                raise self._error
            if not self._num_open:
                return []
            await self._wait()
        return self._take()

    async def whole(self) -> list[ChoiceDelta]:
        """All of it, by choice, once it is complete. Raises the QuireError that ended it."""
        while self._num_open and self._error is None:
            await self._wait()
        if self._error is not None:
            raise self._error
        return sorted(self._take(), key=lambda delta: delta.index)

    def fail(self, error: QuireError) -> None:
        """End the answer with `error`, if it has not ended."""
        if self._error is not None or not self._num_open:
            return
        self._error = error
        self._wake_soon()
        # Soon, not now: the request that brought the error must first be known to have ended.
        asyncio.get_running_loop().call_soon(self._on_failure)

    def add(self, choice: int, delta: tokenizer_pb2.TextDelta) -> None:
        """Take in a delta of `choice`."""
        pending = self._pending.get(choice)
        if pending is None:
            pending = self._pending[choice] = ChoiceDelta(choice)
        text = delta.text
        if text:
            pending.texts.append(text)
        pending.num_tokens += delta.num_tokens
        if delta.prompt_tokens:
            pending.prompt_tokens = delta.prompt_tokens
        pending.add_parts(delta, keep_token_ids=self._keep_token_ids)
        if pending.tool_calls:
            self._called.add(choice)
        if delta.finish_reason:
            pending.add_end(delta, called=choice in self._called)
            self._num_open -= 1
        self.num_deltas += 1
        if self._max_buffered_bytes is not None:
            self._buffered_bytes += delta.ByteSize() + _DELTA_BYTES
            if self._buffered_bytes > self._max_buffered_bytes and self._num_open:
                self.fail(Overloaded("the client reads its stream more slowly than the model writes it"))
                return
        if self._waiter is not None:
            self._wake_soon()

    def _take(self) -> list[ChoiceDelta]:
        pending, self._pending = self._pending, {}
        self._buffered_bytes = 0
        return list(pending.values())

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake_soon(self) -> None:
        if not self._in_round:
            self._in_round = True
            self._rounds.add(self._wake)

    def _wake(self) -> None:
        self._in_round = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class PromptReceiver:
    """Passes the deltas of one submitted prompt on to its answer."""

    def __init__(self, answer: Answer, first_choice: int, num_sequences: int) -> None:
        self._answer = answer
        self._first_choice = first_choice
        self._num_sequences = num_sequences
        self._num_open = num_sequences

    def push(self, delta: tokenizer_pb2.TextDelta) -> bool:
        """Take in a delta; true when nothing more will come."""
        if delta.finish_reason in (types_pb2.FINISH_REASON_ERROR, types_pb2.FINISH_REASON_CANCELLED):
            self._answer.fail(_ended_by(delta))
            return True
        if delta.sequence >= self._num_sequences:
            self._answer.fail(Internal(f"the tokenizer service answered for sequence {delta.sequence}"))
            return True
        self._answer.add(self._first_choice + delta.sequence, delta)
        if delta.finish_reason:
            self._num_open -= 1
        return self._num_open == 0

    def fail(self, error: QuireError) -> None:
        """Nothing more will come, because of `error`."""
        self._answer.fail(error)


def _ended_by(delta: tokenizer_pb2.TextDelta) -> QuireError:
    if delta.HasField("error"):
        return from_proto(delta.error)
    if delta.finish_reason == types_pb2.FINISH_REASON_CANCELLED:
        return NotReady("the server gave the request up before it was finished; try again", retry_after_s=1.0)
    return Internal("the request failed and nothing says why")
