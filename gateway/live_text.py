"""A request at a tokenizer service: what has come of it, so that another service can go on with it."""

import time
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from quire.errors import QuireError
from quire.v1 import tokenizer_pb2, types_pb2

_LEAST_TIMEOUT_S = 0.001


class Receiver(Protocol):
    """Where the deltas of one submitted request go."""

    def push(self, delta: tokenizer_pb2.TextDelta) -> bool:
        """Take in a delta; true when it was the request's last."""

    def fail(self, error: QuireError) -> None:
        """Nothing more will come."""


class Home(Protocol):
    """Who has a request: a tokenizer service's client, or whoever looks for another one."""

    def cancel(self, live: "LiveText") -> None:
        """Stop it; its receiver hears nothing more."""


@dataclass(slots=True)
class _Received:
    """What has come of one sequence."""

    num_tokens: int = 0
    token_ids: bytearray = field(default_factory=bytearray)
    """int32, of those tokens whose ids were told."""
    has_ended: bool = False


class LiveText:
    """One request. Its home changes when a tokenizer service is lost."""

    __slots__ = ("_num_losses", "_received", "_started_s", "handle", "home", "model", "receiver", "request")

    def __init__(
        self, request: tokenizer_pb2.TextRequest, receiver: Receiver, model: types_pb2.ModelDescription
    ) -> None:
        self.request = request
        self.receiver = receiver
        self.model = model
        """As it was asked for, then of the service that has it."""
        self.home: Home | None = None
        self.handle = 0
        """Its name at its home."""
        self._started_s = time.monotonic()
        self._received: dict[int, _Received] = {}
        self._num_losses = 0
        """Services that were lost with it since something came of it."""

    def cancel(self) -> None:
        """Stop it; nothing happens if it has ended."""
        home, self.home = self.home, None
        if home is not None:
            home.cancel(self)

    def note(self, delta: tokenizer_pb2.TextDelta) -> None:
        """The hot path: a delta has come."""
        received = self._received.get(delta.sequence)
        if received is None:
            received = self._received[delta.sequence] = _Received()
        received.num_tokens += delta.num_tokens
        received.token_ids += delta.token_ids
        if delta.finish_reason:
            received.has_ended = True
        self._num_losses = 0

    def lose(self) -> bool:
        """Its service was lost; whether another may go on with it.

        Not with one that two were lost with, one after the other, and nothing came of it: it may be what ended them.
        Nor where tokens came without their ids.
        """
        self._num_losses += 1
        return self._num_losses == 1 and all(
            received.has_ended or len(received.token_ids) == 4 * received.num_tokens
            for received in self._received.values()
        )

    @property
    def was_lost(self) -> bool:
        """Whether a service was lost with it, and nothing came of it since."""
        return self._num_losses > 0

    @property
    def left_s(self) -> float:
        """Seconds until its deadline; inf: it has none."""
        if not self.request.HasField("timeout_s"):
            return inf
        return self.request.timeout_s - (time.monotonic() - self._started_s)

    def next_request(self) -> tokenizer_pb2.TextRequest:
        """As it is submitted now: whole at first, later with what has come, and the time that is left."""
        if self.home is None:
            return self.request
        request = tokenizer_pb2.TextRequest()
        request.CopyFrom(self.request)
        if request.HasField("timeout_s"):
            request.timeout_s = max(self.left_s, _LEAST_TIMEOUT_S)
        for sequence, received in self._received.items():
            request.resumed.add(
                sequence=sequence, token_ids=bytes(received.token_ids), has_ended=received.has_ended
            )
        return request
