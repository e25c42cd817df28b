"""The flight recorder: what went into the core and what came out, as far back as there is room for.

The core is deterministic, so a copy of its state and the calls made since give every command again, byte by byte
(`python -m benchmarks.replay FILE`). Two segments are kept, each a state and the calls after it; when the newer one
is full the older one goes. A dump holds the prompts of its requests, and reading one runs code, as pickles do: take it
only from whom you would take a program.

What is kept is tuples of strings, numbers and bytes, which Python's garbage collector lets alone: hundreds of thousands
of messages would hold every collection up, and with it the steps, by a tenth of a second.
"""

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from quire.errors import QuireError
from quire.v1 import worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.routing import Route, cheapest
from scheduler_svc.core.scheduler import Scheduler

# Another one whenever the core's state has other attributes: what is read would break in the middle of a call.
FORMAT = 5
# A call's tuple, names and numbers, beside its messages.
_CALL_BYTES = 300
# A block that is adopted: its hash and numbers.
_ADOPTED_BYTES = 200

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class Call:
    """One call into the core."""

    method: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outcome: worker_pb2.StepCommand | str | None = None
    """Of `schedule`, the command; of any call that was refused, the error's name."""


_Kept = tuple[Any, ...]
"""A call as it is kept, flat: method, keywords or None, outcome, arguments."""


@dataclass(slots=True)
class Segment:
    """A state of the core, pickled, and the calls since."""

    state: bytes
    calls: list[_Kept] = field(default_factory=list)
    num_bytes: int = 0


def _packed(value: Any) -> Any:
    """A message as its type's name, a zero and its bytes; anything else, which never is bytes, as it is."""
    if not isinstance(value, Message):
        return value
    return value.DESCRIPTOR.full_name.encode() + b"\0" + value.SerializeToString()


def _unpacked(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    name, _, content = value.partition(b"\0")
    return GetMessageClass(Default().FindMessageTypeByName(name.decode())).FromString(content)


def _unpacked_call(kept: _Kept) -> Call:
    method, keywords, outcome, *arguments = kept
    return Call(method, tuple(map(_unpacked, arguments)), keywords or {}, _unpacked(outcome))


def _recorded(method: Callable[Concatenate[Scheduler, P], R]) -> Callable[Concatenate[Any, P], R]:
    """The method, each call of which is kept: its arguments as they were before, its outcome, or that it failed."""

    name = method.__name__

    @wraps(method)
    def recorded(scheduler: Any, *arguments: P.args, **keywords: P.kwargs) -> R:
        if scheduler.is_inside:
            return getattr(Scheduler, name)(scheduler, *arguments, **keywords)  # type: ignore[no-any-return]
        kept = [_packed(argument) for argument in arguments]
        scheduler.make_room()
        scheduler.is_inside = True
        outcome: Any = None
        try:
            result: R = getattr(Scheduler, name)(scheduler, *arguments, **keywords)
            if isinstance(result, worker_pb2.StepCommand):
                outcome = _packed(result)
            return result
        except QuireError as error:
            outcome = type(error).__name__
            raise
        finally:
            scheduler.is_inside = False
            scheduler.keep_call(name, kept, keywords or None, outcome)

    # It is called as the method is, whatever `wraps` makes of its first argument's name.
    return cast("Callable[Concatenate[Any, P], R]", recorded)


class RecordedScheduler(Scheduler):
    """The core, each call into which is kept, in at most about `max_bytes` and two copies of its state.

    What the core is asked for, `take_updates` and `take_endings`, changes nothing that a command depends on, and is
    not kept. Adopted blocks are to be given as a list.
    """

    def __init__(self, limits: Limits, *, max_bytes: int, route: Route = cheapest) -> None:
        super().__init__(limits, route)
        self._max_bytes = max_bytes
        self.is_inside = False
        """Whether a call is being made: those that it makes itself are the core's own business."""
        self._older: Segment | None = None
        self._newer: Segment | None = None

    def dump(self, path: Path) -> int:
        """Write what is kept to `path`, for its owner's eyes only; returns the number of calls. Raises OSError."""
        segment = self._older or self._newer or Segment(self._state())
        calls = list(segment.calls)
        if segment is self._older and self._newer is not None:
            calls += self._newer.calls
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            content = {"format": FORMAT, "state": segment.state, "calls": list(map(_unpacked_call, calls))}
            pickle.dump(content, file)
        return len(calls)

    def make_room(self) -> None:
        """Begin another segment where the newer one is full; before a call, whose outcome its state must not know."""
        if self._newer is None or self._is_full(self._newer):
            self._older, self._newer = self._newer, Segment(self._state())

    def keep_call(self, method: str, arguments: list[Any], keywords: Any, outcome: Any) -> None:
        """Keep a call that was made, or that failed."""
        assert self._newer is not None
        self._newer.calls.append((method, keywords, outcome, *arguments))
        self._newer.num_bytes += _CALL_BYTES
        for part in (*arguments, outcome):
            if isinstance(part, bytes):
                self._newer.num_bytes += len(part)
            elif isinstance(part, list):
                self._newer.num_bytes += _ADOPTED_BYTES * len(part)

    def _is_full(self, segment: Segment) -> bool:
        # Copying the state takes a while, so it is done in a quiet moment if one comes in time.
        quarter = self._max_bytes // 4
        return segment.num_bytes > (quarter if self.num_requests == 0 else 2 * quarter)

    def _state(self) -> bytes:
        """The core alone, pickled."""
        core = object.__new__(Scheduler)
        core.__dict__.update(self.__dict__)
        for own in ("_max_bytes", "_older", "_newer", "is_inside"):
            del core.__dict__[own]
        return pickle.dumps(core)

    attach = _recorded(Scheduler.attach)
    detach = _recorded(Scheduler.detach)
    drain = _recorded(Scheduler.drain)
    keep = _recorded(Scheduler.keep)
    forget = _recorded(Scheduler.forget)
    add = _recorded(Scheduler.add)
    cancel = _recorded(Scheduler.cancel)
    finish = _recorded(Scheduler.finish)
    cancel_client = _recorded(Scheduler.cancel_client)
    schedule = _recorded(Scheduler.schedule)
    apply = _recorded(Scheduler.apply)
    _expire = _recorded(Scheduler.expire)

    def expire(self, now: float) -> None:
        """As the core's; mostly there is nothing to do, and so nothing to keep."""
        if self.next_deadline() <= now:
            self._expire(now)


def replay(path: Path) -> "Replay":
    """Read a dump and make its calls again. Raises ValueError for a file that is none, OSError."""
    try:
        with path.open("rb") as file:
            content = pickle.load(file)  # noqa: S301 (see the module's docstring)
        recorded_format = content["format"]
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no flight record: {error}") from None
    if recorded_format != FORMAT:
        raise ValueError(f"{path} has format {recorded_format}; this program reads {FORMAT}")
    scheduler: Scheduler = pickle.loads(content["state"])  # noqa: S301
    found = Replay()
    for number, call in enumerate(content["calls"]):
        found.num_calls += 1
        if not _is_same(_make(scheduler, call, found), call.outcome):
            found.first_difference = f"call {number}, {call.method}{call.arguments[:1]}"
            return found
    return found


@dataclass(slots=True)
class Replay:
    """What came of making recorded calls again."""

    num_calls: int = 0
    num_commands: int = 0
    first_difference: str = ""
    """The first call whose command or refusal is another; empty if all are the same."""


def _make(scheduler: Scheduler, call: Call, found: Replay) -> worker_pb2.StepCommand | str | None:
    try:
        result = getattr(scheduler, call.method)(*call.arguments, **call.keywords)
    except QuireError as error:
        return type(error).__name__
    if isinstance(result, worker_pb2.StepCommand):
        found.num_commands += 1
        return result
    return None


def _is_same(
    made: worker_pb2.StepCommand | str | None, recorded: worker_pb2.StepCommand | str | None
) -> bool:
    if isinstance(made, worker_pb2.StepCommand) and isinstance(recorded, worker_pb2.StepCommand):
        return made.SerializeToString(deterministic=True) == recorded.SerializeToString(deterministic=True)
    return made == recorded
