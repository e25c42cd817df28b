"""A world for the pure core: workers that check the protocol, clients that check their tokens, and a clock.

Two clients use the same handles: the request that is asked under key k is client 1 + k % 2's handle k // 2.
"""

from collections import deque
from dataclasses import dataclass, field

from benchmarks.instant_rows import InstantRows, expected_tokens
from quire.errors import QuireError
from quire.packing import pack_int32, unpack_int32, unpack_uint32
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.sequence import QueueCause, Sequence
from scheduler_svc.flight_recorder import RecordedScheduler
from tests.scheduler_svc.core.ownership import Ownership

# What tenants are entitled to, where they are entitled to anything.
POLICIES = {
    "floor": types_pb2.TenantPolicy(kv_floor=0.3),
    "ceiling": types_pb2.TenantPolicy(kv_ceiling=0.8, weight=0.5),
    "heavy": types_pb2.TenantPolicy(weight=4.0),
}
VOCAB = 50
BLOCK_SIZE = 4
MAX_MODEL_LEN = 60


def description(worker_epoch: int, *, num_blocks: int, max_rows: int) -> worker_pb2.WorkerDescription:
    """A small worker."""
    model = types_pb2.ModelDescription(
        name="m", revision="r", vocab_size=VOCAB, max_model_len=MAX_MODEL_LEN, eos_token_ids=pack_int32([3])
    )
    return worker_pb2.WorkerDescription(
        worker_id="w", worker_epoch=worker_epoch, model=model, block_size=BLOCK_SIZE, num_blocks=num_blocks,
        max_rows=max_rows, max_step_tokens=24, max_decode_steps=4, max_logprobs=5,
    )  # fmt: skip


@dataclass
class FakeWorker:
    """A worker and its pipe: commands wait to be executed, results to be delivered, both in order."""

    rows: InstantRows
    commands: deque[worker_pb2.StepCommand] = field(default_factory=deque)
    results: deque[worker_pb2.StepResult] = field(default_factory=deque)
    ownership: Ownership = field(default_factory=lambda: Ownership(BLOCK_SIZE))
    connected: bool = False
    computed_and_lost: int = 0
    """Positions computed by commands whose results were lost with the stream: the ledger has none of them."""


@dataclass
class Asked:
    """A request as its client sees it."""

    prompt: list[int]
    n: int
    stop_token_ids: tuple[int, ...]
    max_tokens: int
    tokens: dict[int, list[int]]
    ends: dict[int, scheduler_pb2.SequenceEnd] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    cancelled: bool = False
    has_deadline: bool = False
    is_resumed: bool = False

    @property
    def is_over(self) -> bool:
        """Whether every sequence has ended."""
        return self.cancelled or len(self.ends) == self.n


class World:
    """One scheduler, its workers, two clients. Every method is an event."""

    def __init__(
        self,
        *,
        num_blocks: int = 24,
        max_rows: int = 5,
        num_workers: int = 1,
        pipeline_depth: int = 2,
        max_decode_steps: int = 4,
    ) -> None:
        self.now = 0.0
        limits = Limits(
            max_queue_sequences=12,
            max_step_tokens=16,
            pipeline_depth=pipeline_depth,
            max_decode_steps=max_decode_steps,
            decode_burst_s=1.0,
        )
        self.scheduler = RecordedScheduler(limits, max_bytes=1 << 30)
        self._sizes = {"num_blocks": num_blocks, "max_rows": max_rows}
        self._epoch = 0
        self.workers: dict[str, FakeWorker] = {}
        self.asked: dict[int, Asked] = {}
        self.endings: list[types_pb2.Usage] = []
        for number in range(num_workers):
            name = f"w{number}"
            self.workers[name] = self._new_worker()
            self.connect(name)

    def _new_worker(self) -> FakeWorker:
        self._epoch += 1
        return FakeWorker(InstantRows(description(self._epoch, **self._sizes)))

    # -- workers

    def connect(self, name: str) -> None:
        """The worker's stream opens: its rows are free, its blocks as they were."""
        worker = self.workers[name]
        worker.rows.clear()
        worker.connected = True
        self._epoch += 1
        self.scheduler.attach(name, worker.rows.description, self._epoch, self.now)

    def disconnect(self, name: str, *, restart: bool) -> None:
        """The stream breaks, with what is in flight; `restart`: the process too, with its blocks."""
        worker = self.workers[name]
        worker.connected = False
        worker.computed_and_lost += sum(result.tokens_computed for result in worker.results)
        worker.results.clear()
        worker.commands.clear()
        worker.ownership.clear()
        self.scheduler.detach(name, self.now)
        if restart:
            fresh = self._new_worker()
            fresh.computed_and_lost = worker.computed_and_lost
            fresh.rows.tokens_computed = worker.rows.tokens_computed
            self.workers[name] = fresh

    def feed(self, name: str) -> None:
        """Send what the scheduler has for a worker."""
        worker = self.workers[name]
        while worker.connected and (command := self.scheduler.schedule(name, self.now)) is not None:
            worker.ownership.sent(command)
            worker.commands.append(worker_pb2.StepCommand.FromString(command.SerializeToString()))

    def work(self, name: str, times: int = 99) -> None:
        """The worker executes what it was sent, up to so many commands."""
        worker = self.workers[name]
        while worker.commands and times > 0:
            command = worker.commands.popleft()
            result = worker.rows.execute(command)
            # Some are so fast that more commands are kept in flight to them.
            result.step_s = (0.0006 if name[-1] in "13579b" else 0.01) * max(1, command.decode_steps)
            worker.results.append(result)
            times -= 1

    def answer(self, name: str) -> None:
        """Deliver the oldest result."""
        worker = self.workers[name]
        if not worker.results:
            self.work(name, 1)
        if worker.results:
            result = worker.results.popleft()
            self.scheduler.apply(name, result, self.now)
            worker.ownership.retired(result.step_id)

    # -- the clients

    def ask(self, key: int, prompt: list[int], *, n: int = 1, max_tokens: int = 8, **fields: object) -> bool:
        """Submit a request; false if it was refused."""
        stops = tuple(fields.pop("stop_token_ids", ()))
        resumed = fields.pop("resumed", 0)
        asked = Asked(prompt, n, (*stops, 3), max_tokens, {index: [] for index in range(n)})
        request = scheduler_pb2.TokenRequest(
            request_id=str(key),
            prompt_token_ids=pack_int32(prompt),
            n=n,
            tenant_policy=POLICIES.get(str(fields.get("tenant"))),
            sampling=types_pb2.SamplingParams(
                temperature=0, max_tokens=max_tokens, stop_token_ids=pack_int32(stops)
            ),
            **fields,
        )
        asked.has_deadline = request.HasField("timeout_s")
        if resumed:
            known = asked_tokens(asked)[: min(resumed, len(asked_tokens(asked)))]
            asked.is_resumed = True
            asked.tokens[n - 1] = list(known)
            request.resumed.add(sequence=n - 1, token_ids=pack_int32(known))
        try:
            self.scheduler.add(*address(key), request, 0, self.now)
        except QuireError:
            return False
        self.asked[key] = asked
        return True

    def cancel(self, key: int) -> None:
        """A client gives one request up."""
        self.asked[key].cancelled = True
        self.scheduler.cancel(*address(key), self.now)

    def leave(self, client: int) -> None:
        """A client is gone, with all it asked for; nothing comes for it any more."""
        for key, asked in self.asked.items():
            if address(key)[0] == client and not asked.is_over:
                asked.cancelled = True
        self.scheduler.cancel_client(client, self.now)

    def finish(self, key: int, sequence: int) -> None:
        """A stop string was found in a sequence."""
        if sequence not in self.asked[key].ends:
            self.asked[key].finished.add(sequence)
        self.scheduler.finish(*address(key), sequence, self.now)

    def receive(self) -> None:
        """Take what the scheduler has for each client, and check it against the oracle."""
        for client, batch in self.scheduler.take_updates().items():
            self._receive(client, batch)
        self.endings += [ending.usage for ending in self.scheduler.take_endings()]

    def _receive(self, client: int, batch: scheduler_pb2.TokenBatch) -> None:
        handles, tokens = unpack_uint32(batch.handles).tolist(), unpack_int32(batch.token_ids).tolist()
        sequences = unpack_uint32(batch.sequences).tolist() if batch.sequences else [0] * len(handles)
        counts = unpack_uint32(batch.num_tokens).tolist() if batch.num_tokens else [1] * len(handles)
        start = 0
        for handle, sequence, count in zip(handles, sequences, counts, strict=True):
            asked = self.asked[key_of(client, handle)]
            assert not asked.cancelled, "tokens after a cancel"
            assert sequence not in asked.ends, "tokens after the end"
            assert sequence not in asked.finished, "tokens after a finish"
            asked.tokens[sequence] += tokens[start : start + count]
            start += count
            whole = asked_tokens(asked)
            assert asked.tokens[sequence] == whole[: len(asked.tokens[sequence])], (
                "tokens lost, repeated or wrong"
            )
        for end in batch.ends:
            self._end(self.asked[key_of(client, end.handle)], end)

    @staticmethod
    def _end(asked: Asked, end: scheduler_pb2.SequenceEnd) -> None:
        assert not asked.cancelled, "an end after a cancel"
        assert end.sequence not in asked.ends, "two ends of one sequence"
        asked.ends[end.sequence] = end
        if end.finish_reason in (types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH):
            whole = asked_tokens(asked)
            if end.sequence not in asked.finished:
                assert asked.tokens[end.sequence] == whole, "an end before the last token"
            assert end.usage.completion_tokens == len(asked.tokens[end.sequence])
            assert end.usage.prompt_tokens == len(asked.prompt)
            _check_ledger(end.usage, exact=not asked.is_resumed and end.sequence not in asked.finished)
        else:
            assert end.error.code == types_pb2.ERROR_CODE_DEADLINE_EXCEEDED
            assert asked.has_deadline

    # -- the end of the world

    def settle(self) -> None:
        """Let everything run to its end, and check that nothing is left behind and the ledger adds up."""
        for name, worker in self.workers.items():
            if not worker.connected:
                self.connect(name)
        for _ in range(3000):
            for name in self.workers:
                self.feed(name)
                self.answer(name)
            self.receive()
            if all(asked.is_over for asked in self.asked.values()) and not self._busy():
                break
        assert all(asked.is_over for asked in self.asked.values()), "a request never ended"
        self.check()
        for name, worker in self.workers.items():
            replica = self.scheduler.replicas[name]
            assert replica.rows.num_free == replica.rows.max_rows, "a row leaked"
            assert replica.pool.num_free == replica.pool.num_blocks, "a block leaked"
            assert int(worker.rows.used.sum()) == 0
        computed = sum(
            worker.rows.tokens_computed - worker.computed_and_lost for worker in self.workers.values()
        )
        assert sum(usage.computed_tokens for usage in self.endings) == computed, "the ledger does not add up"

    def _busy(self) -> bool:
        return any(
            replica.in_flight or replica.rows.num_free < replica.rows.max_rows
            for replica in self.scheduler.replicas.values()
        )

    def check(self) -> None:
        """The invariants that hold after every event."""
        self.scheduler.check_integrity()
        entitled = [s for s in self.scheduler.queue.in_order() if s.request.tenant.kv_floor]
        for sequence in entitled:
            for replica in self.scheduler.replicas.values():
                self._check_entitlement(replica, sequence)

    @staticmethod
    def _check_entitlement(replica: Replica, sequence: Sequence) -> None:
        """Nobody waits for blocks that its tenant's floor keeps for it."""
        prefix = replica.find_prefix(sequence)
        needed = replica.num_blocks_needed(sequence, prefix)
        if not replica.connected or needed > replica.pool.reserved(sequence.request.tenant.index):
            return
        is_short = replica.obstacle(sequence, prefix) is QueueCause.BLOCKS
        # Unless others had the blocks before the floor was set; they are being taken back then.
        assert not is_short or replica.pool.spare < 0, "a tenant below its floor while it has demand"


def address(key: int) -> tuple[int, int]:
    """Client and handle."""
    return 1 + key % 2, key // 2


def key_of(client: int, handle: int) -> int:
    """The other way round."""
    return 2 * handle + client - 1


def _check_ledger(usage: types_pb2.Usage, *, exact: bool) -> None:
    """`exact`: the sequence ended by itself, so all but its last token were found or computed, and counted once."""
    assert min(usage.queue_s, usage.prefill_s, usage.decode_s) >= 0.0
    assert usage.recomputed_tokens <= usage.computed_tokens
    if exact and usage.preemptions == 0:
        assert usage.recomputed_tokens == 0
        assert (
            usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens + usage.completion_tokens - 1
        )


def asked_tokens(asked: Asked) -> list[int]:
    """The whole output of each sequence: the fake model's tokens depend on nothing but the prompt."""
    limit = min(asked.max_tokens, MAX_MODEL_LEN - len(asked.prompt))
    tokens = expected_tokens(asked.prompt, limit, VOCAB)
    for position, token in enumerate(tokens):
        if token in asked.stop_token_ids:
            return tokens[: position + 1]
    return tokens
