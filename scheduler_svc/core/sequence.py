"""Requests and their sequences: tokens, place, times and the exact ledger.

A sequence is WAITING (in the queue), RUNNING (holds a row), LEAVING (its row is to be removed, but commands
that may touch it are in flight) or ENDED. A *residency* is one stay on a row. During it the KV positions
computed are one range, from the cached prefix to the last token but one, so the ledger needs no per-token
work: it is settled when the residency ends.
"""

from array import array
from dataclasses import dataclass, field
from enum import Enum
from math import nan

from quire.v1 import types_pb2
from scheduler_svc.core.block_hash import block_hash, private_parent
from scheduler_svc.core.prefix_memory import PrefixMemory
from scheduler_svc.core.tenants import Tenant


class SequenceState(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    LEAVING = "leaving"
    ENDED = "ended"


class LeaveReason(Enum):
    """Why a sequence gives up its row."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    STOPPED = "stopped"
    """Its output is complete, as those above decided (a stop string)."""
    PREEMPTED = "preempted"


@dataclass(slots=True, eq=False)
class Request:
    """What a client asked for: one prompt, n sequences."""

    client: int
    """Who is told, as the shell numbers its sessions and calls."""
    handle: int
    request_id: str
    tenant: Tenant
    priority: int
    arrived_at: float
    deadline: float | None
    trace: types_pb2.TraceContext | None
    cache_root: bytes
    """Parent of its first block that may not be shared with everybody."""
    public_root: bytes = b""
    """Parent of its first block, if that may be."""
    num_public_tokens: int = 0
    """Leading prompt tokens whose full blocks may be shared with everybody."""
    predicted_ttft_s: float = 0.0
    """Time to first token as predicted at admission, 0 if nothing was known."""
    sequences: list["Sequence"] = field(default_factory=list)
    num_unfinished: int = 0
    ledger_id: str = ""
    """Names it in the ledger, at whichever schedulers it has been."""


class QueueCause(Enum):
    """What a sequence waited for before it got a row, as of the last look at it."""

    STEP = "step"
    """Nothing but the next command."""
    ROWS = "rows"
    BLOCKS = "blocks"
    PREFIX = "prefix"
    """Another sequence is computing the prefix that it needs."""
    TENANT = "tenant"
    """Its tenant holds as many blocks as it may."""
    WORKER = "worker"
    """No worker that could run it was connected."""


class Sequence:
    """One generation of a request. Token positions count from 0 over prompt and output together."""

    __slots__ = (
        "admitted_at", "block_hashes", "block_ids", "cached_tokens", "chunk_end", "chunk_retired",
        "computed_tokens", "ended_at", "first_token_at", "high_water", "index", "last_token_at",
        "leave_reason", "left_for", "max_total_tokens", "num_added", "num_cached_here", "num_dropped",
        "num_overtaken", "num_prompt_tokens", "num_uncached", "order", "preemptions", "prefix_memory",
        "queue_cause", "recomputed_tokens", "replica", "request", "row", "sampling", "settled", "state",
        "stop_token_ids", "token_ids",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        index: int,
        order: int,
        *,
        token_ids: "array[int]",
        num_prompt_tokens: int,
        max_total_tokens: int,
        sampling: types_pb2.SamplingParams,
        stop_token_ids: frozenset[int],
    ) -> None:
        self.request = request
        self.index = index
        self.order = order
        """Arrival number over all sequences: smaller is older."""
        self.token_ids = token_ids
        """Prompt, then output so far."""
        self.num_prompt_tokens = num_prompt_tokens
        self.max_total_tokens = max_total_tokens
        self.sampling = sampling
        """As the worker gets it: seed set, stop tokens complete."""
        self.stop_token_ids = stop_token_ids
        self.block_hashes: list[bytes] = []
        """Hashes of the leading full blocks of `token_ids`, as far as they were needed."""
        self.prefix_memory = PrefixMemory()
        self.state = SequenceState.WAITING
        self.queue_cause = QueueCause.STEP
        self.left_for = ""  # name of the replica that it was last passed over for
        self.num_overtaken = 0
        """Shorter sequences that were placed while there were too few blocks for it."""
        self.num_uncached = len(token_ids)
        """Positions to compute before its next token, as they were when it began to wait."""

        # The residency.
        self.replica = ""
        """Name of the replica that it runs on, or ran on last."""
        self.row = -1
        self.block_ids: list[int] = []
        self.leave_reason: LeaveReason | None = None
        self.num_added = 0
        """Tokens it had when it got its row."""
        self.num_cached_here = 0
        """Leading positions whose KV was there when it got its row."""
        self.chunk_end = 0
        """End of the prompt positions that commands have asked for."""
        self.chunk_retired = 0
        """End of the prompt positions that retired commands have computed."""
        self.num_dropped = 0
        """Tokens sampled for it that nobody wanted any more."""
        self.settled = True

        # The ledger.
        self.cached_tokens = 0
        self.computed_tokens = 0
        self.recomputed_tokens = 0
        self.preemptions = 0
        # Positions below this were computed before; a resumed sequence's were, by whoever had it.
        self.high_water = len(token_ids) - 1 if len(token_ids) > num_prompt_tokens else 0
        self.admitted_at = self.first_token_at = self.last_token_at = self.ended_at = nan

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_prefill_left(self) -> int:
        """Positions of its known tokens that no command has asked for."""
        return self.num_added - self.chunk_end

    def num_public_blocks(self, block_size: int) -> int:
        """Leading full blocks that may be shared with everybody."""
        return min(self.request.num_public_tokens, self.num_prompt_tokens) // block_size

    def hash_blocks(self, count: int, block_size: int) -> list[bytes]:
        """Hashes of the first `count` full blocks; the caller has checked that there are so many."""
        hashes = self.block_hashes
        if len(hashes) < count:
            request = self.request
            num_public = self.num_public_blocks(block_size)
            root = request.public_root if num_public else request.cache_root
            parent = hashes[-1] if hashes else root
            first, width = len(hashes), block_size * self.token_ids.itemsize
            tokens = self.token_ids[first * block_size : count * block_size].tobytes()
            for block in range(first, count):
                if block == num_public > 0:
                    parent = private_parent(parent, request.cache_root)
                at = (block - first) * width
                parent = block_hash(parent, tokens[at : at + width])
                hashes.append(parent)
        return hashes if len(hashes) == count else hashes[:count]

    def enter(self, row: int, block_ids: list[int], num_cached: int, now: float) -> None:
        """Begin a residency on `row`, with the KV of the first `num_cached` tokens already in `block_ids`."""
        if self.admitted_at != self.admitted_at:
            self.admitted_at = now
            self.cached_tokens = min(num_cached, self.num_prompt_tokens)
        self.prefix_memory.clear()
        self.state = SequenceState.RUNNING
        self.leave_reason = None
        self.row = row
        self.block_ids = block_ids
        self.num_added = len(self.token_ids)
        self.num_cached_here = self.chunk_end = self.chunk_retired = num_cached
        self.num_dropped = 0
        self.settled = False

    def settle(self) -> None:
        """Enter the residency in the ledger, once. All that computes for it has retired, or is lost."""
        if self.settled:
            return
        self.settled = True
        end = self.chunk_retired
        if end == self.num_added:
            # Each sampled token but the first took the computation of one more position.
            end += max(0, len(self.token_ids) - self.num_added + self.num_dropped - 1)
        self.computed_tokens += end - self.num_cached_here
        self.recomputed_tokens += max(0, min(end, self.high_water) - self.num_cached_here)
        self.high_water = max(self.high_water, end)

    def usage(self) -> types_pb2.Usage:
        """The ledger of an ended sequence. Its three times add up to its whole life.

        Waits after a preemption count where they fall: before the first token as prefill, after it as decode.
        """
        arrived, ended = self.request.arrived_at, self.ended_at
        admitted = self.admitted_at if self.admitted_at == self.admitted_at else ended
        first_token = self.first_token_at if self.first_token_at == self.first_token_at else ended
        return types_pb2.Usage(
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.num_output_tokens,
            computed_tokens=self.computed_tokens,
            recomputed_tokens=self.recomputed_tokens,
            preemptions=self.preemptions,
            queue_s=admitted - arrived,
            prefill_s=first_token - admitted,
            decode_s=ended - first_token,
        )
