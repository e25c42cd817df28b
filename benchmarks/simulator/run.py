"""The event loop: arrivals of a trace and results of workers, in the order of simulated time."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import inf

import numpy as np

from benchmarks.simulator.fleet import Fleet
from benchmarks.simulator.node import Answer, Node
from benchmarks.simulator.recorder import Outcome, Recorder
from benchmarks.simulator.traces import Tokens, Trace
from quire.errors import Overloaded
from quire.packing import pack_int32, unpack_int32
from quire.v1 import scheduler_pb2, types_pb2
from scheduler_svc.core.live_requests import Ending


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A turn of a conversation is asked for."""

    conversation: int
    turn: int
    said: Tokens
    """All that the conversation holds before this turn's message."""


@dataclass(frozen=True, slots=True)
class _Wake:
    """A deadline may have passed."""

    node: int


@dataclass(frozen=True, slots=True)
class _Result:
    node: int
    answer: Answer


_Event = _Arrival | _Wake | _Result


class Simulation:
    """Runs a trace to its end, against one node, or several and the `fleet` that chooses between them."""

    def __init__(self, trace: Trace, nodes: Sequence[Node], fleet: Fleet | None = None) -> None:
        self.nodes = nodes
        self._fleet = fleet
        self.now = 0.0
        self.recorder = Recorder(trace)
        self._trace = trace
        self._events: list[tuple[float, int, _Event]] = []
        self._numbers = count()
        self._wake_at = [inf] * len(nodes)
        self._prompts: dict[int, tuple[int, int]] = {}
        """Conversation and turn of every request that runs."""

    def run(self) -> Recorder:
        """Play the whole trace. Raises AssertionError if a request is lost, or tokens, or blocks."""
        nothing = np.zeros(0, np.int32)
        for number, conversation in enumerate(self._trace.conversations):
            self._push(conversation.arrival_s, _Arrival(number, 0, nothing))
        while self._events:
            self.now = self._events[0][0]
            # One pump for all that happens at a moment, as in one turn of the service's event loop.
            touched: set[int] = set()
            while self._events and self._events[0][0] == self.now:
                touched.add(self._take(heapq.heappop(self._events)[2]))
            for node in sorted(touched):
                self._pump(node)
        for each in self.nodes:
            each.check_at_rest()
        recorder = self.recorder
        assert not bool((recorder.outcome == Outcome.RUNNING).any()), "a request never ended"
        computed = sum(worker.rows.tokens_computed for node in self.nodes for worker in node.workers.values())
        assert int(recorder.computed_tokens.sum()) == computed, "ledgers and workers differ"
        return recorder

    def _push(self, at: float, event: _Event) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), event))

    def _take(self, event: _Event) -> int:
        """Let the event happen; returns the node that it happened to."""
        if isinstance(event, _Arrival):
            return self._arrive(event)
        if isinstance(event, _Result):
            self.nodes[event.node].answered(event.answer)
        return event.node

    def _arrive(self, arrival: _Arrival) -> int:
        conversation = self._trace.conversations[arrival.conversation]
        turn = conversation.turns[arrival.turn]
        prompt = np.concatenate([arrival.said, turn.message])
        number = int(self.recorder.first_turns[arrival.conversation]) + arrival.turn
        request = scheduler_pb2.TokenRequest(
            request_id=str(number),
            prompt_token_ids=pack_int32(prompt),
            sampling=types_pb2.SamplingParams(temperature=0.0, max_tokens=turn.output_tokens),
            tenant=conversation.tenant,
            tenant_policy=self._trace.tenant_policies.get(conversation.tenant),
            timeout_s=turn.timeout_s,
        )
        self.recorder.sent(number, len(prompt), self.now)
        node = 0 if self._fleet is None else self._fleet.choose(number, request, self.now)
        try:
            self.nodes[node].submit(number, request, self.now)
        except Overloaded as error:
            self.recorder.refused(number, error, self.now)
        else:
            self._prompts[number] = (arrival.conversation, arrival.turn)
        return node

    def _pump(self, number: int) -> None:
        node = self.nodes[number]
        pumped = node.pump(self.now)
        for answer in pumped.answers:
            self._push(answer.at, _Result(number, answer))
        if pumped.batch is not None:
            self.recorder.delivered(pumped.batch, self.now)
        for ending in pumped.endings:
            self.recorder.ended(ending, self.now)
            self._follow_up(ending)
        wake_at = node.scheduler.wake_at(self.now)
        if wake_at != self._wake_at[number]:
            self._wake_at[number] = wake_at
            if wake_at < inf:
                self._push(max(wake_at, self.now), _Wake(number))

    def _follow_up(self, ending: Ending) -> None:
        """The user reads the reply, thinks, and goes on."""
        conversation, turn = self._prompts.pop(ending.sequence.request.handle)
        turns = self._trace.conversations[conversation].turns
        done = self.recorder.outcome[ending.sequence.request.handle] == Outcome.DONE
        if done and turn + 1 < len(turns):
            said = unpack_int32(ending.sequence.token_ids.tobytes())
            self._push(self.now + turns[turn + 1].think_s, _Arrival(conversation, turn + 1, said))
