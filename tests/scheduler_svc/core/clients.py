"""What clients asked for and what they have of it, checked against the oracle with every token.

Two clients use the same handles: the request that is asked under key k is client 1 + k % 2's handle k // 2. A request
whose scheduler is lost is homeless until another takes it, with the tokens that have come so far, as the tokenizer
service does it.
"""

from dataclasses import dataclass, field

from benchmarks.instant_rows import expected_tokens
from quire.errors import QuireError
from quire.packing import pack_int32, unpack_int32, unpack_uint32
from quire.v1 import scheduler_pb2, types_pb2
from tests.scheduler_svc.core.fake_worker import MAX_MODEL_LEN, VOCAB
from tests.scheduler_svc.core.shell import Shell

# What tenants are entitled to, where they are entitled to anything.
POLICIES = {
    "floor": types_pb2.TenantPolicy(kv_floor=0.3),
    "ceiling": types_pb2.TenantPolicy(kv_ceiling=0.8, weight=0.5),
    "heavy": types_pb2.TenantPolicy(weight=4.0),
}


@dataclass
class Asked:
    """A request as its client sees it."""

    key: int
    request: scheduler_pb2.TokenRequest
    prompt: list[int]
    n: int
    whole: list[int]
    """All tokens that each sequence is to have: the fake model's depend on nothing but the prompt."""
    tokens: dict[int, list[int]]
    deadline: float | None = None
    home: str = ""
    """The scheduler that has it; none while it is homeless."""
    num_homes: int = 0
    ends: dict[int, scheduler_pb2.SequenceEnd] = field(default_factory=dict)
    over_before: frozenset[int] = frozenset()
    """Sequences that had ended when it came to its scheduler."""
    finished: set[int] = field(default_factory=set)
    cancelled: bool = False
    is_resumed: bool = False

    @property
    def is_over(self) -> bool:
        """Whether every sequence has ended."""
        return self.cancelled or len(self.ends) == self.n

    def take(self, sequence: int, tokens: list[int]) -> None:
        """Tokens have come."""
        assert not self.cancelled, "tokens after a cancel"
        if sequence in self.over_before:
            return  # its scheduler cannot know
        assert sequence not in self.ends, "tokens after the end"
        assert sequence not in self.finished, "tokens after a finish"
        self.tokens[sequence] += tokens
        so_far = self.whole[: len(self.tokens[sequence])]
        assert self.tokens[sequence] == so_far, "tokens lost, repeated or wrong"

    def end(self, end: scheduler_pb2.SequenceEnd) -> None:
        """An end has come."""
        assert not self.cancelled, "an end after a cancel"
        if end.sequence in self.over_before:
            return
        assert end.sequence not in self.ends, "two ends of one sequence"
        self.ends[end.sequence] = end
        if end.finish_reason in (types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH):
            if end.sequence not in self.finished:
                assert self.tokens[end.sequence] == self.whole, "an end before the last token"
            assert end.usage.completion_tokens == len(self.tokens[end.sequence])
            assert end.usage.prompt_tokens == len(self.prompt)
            _check_ledger(end.usage, exact=not self.is_resumed and end.sequence not in self.finished)
        elif end.error.code == types_pb2.ERROR_CODE_UNAVAILABLE:
            # No worker came in time: another scheduler may have one.
            del self.ends[end.sequence]
            self.home = ""
        else:
            assert end.error.code == types_pb2.ERROR_CODE_DEADLINE_EXCEEDED
            assert self.deadline is not None


class Clients:
    """Both clients, and everything that they ever asked for."""

    def __init__(self, shells: dict[str, Shell]) -> None:
        self._shells = shells
        self.asked: dict[int, Asked] = {}

    @property
    def num_told(self) -> int:
        """Tokens, ends, and requests given up: grows with everything that comes of what was asked for."""
        return sum(
            sum(map(len, asked.tokens.values())) + len(asked.ends) + asked.cancelled
            for asked in self.asked.values()
        )

    def ask(self, key: int, home: str, asked: Asked, now: float) -> bool:
        """Submit a request; false if it was refused."""
        if not self._submit(asked, asked.request, home, now):
            return False
        self.asked[key] = asked
        return True

    def lose(self, home: str) -> None:
        """A scheduler is gone, and what had not been read of it."""
        for asked in self.asked.values():
            if asked.home == home:
                asked.home = ""

    def rehouse(self, homes: list[str], now: float) -> None:
        """Submit what is homeless again, to one of these that takes it; its deadline is its client's to keep."""
        for asked in self.asked.values():
            if asked.home or asked.is_over:
                continue
            request = scheduler_pb2.TokenRequest()
            request.CopyFrom(asked.request)
            del request.resumed[:]
            for sequence, tokens in asked.tokens.items():
                if tokens:
                    request.resumed.add(sequence=sequence, token_ids=pack_int32(tokens))
            if asked.deadline is not None:
                request.timeout_s = asked.deadline - now
                if request.timeout_s <= 0.0:
                    asked.cancelled = True
                    continue
            for home in homes:
                if self._submit(asked, request, home, now):
                    break

    def cancel(self, key: int, now: float) -> None:
        """One request is given up."""
        asked = self.asked[key]
        asked.cancelled = True
        if asked.home:
            self._shells[asked.home].scheduler.cancel(*address(key), now)

    def leave(self, client: int, now: float) -> None:
        """A client is gone, with all it asked for; nothing comes for it any more."""
        for key, asked in self.asked.items():
            if address(key)[0] == client and not asked.is_over:
                asked.cancelled = True
        for shell in self._shells.values():
            shell.scheduler.cancel_client(client, now)

    def finish(self, key: int, sequence: int, now: float) -> None:
        """A stop string was found in a sequence."""
        asked = self.asked[key]
        if sequence not in asked.ends:
            asked.finished.add(sequence)
        if asked.home:
            self._shells[asked.home].scheduler.finish(*address(key), sequence, now)

    def receive(self) -> None:
        """Take what the schedulers have for each client."""
        for shell in self._shells.values():
            for client, batch in shell.scheduler.take_updates().items():
                self._receive(client, batch)
            shell.settle()

    def _submit(self, asked: Asked, request: scheduler_pb2.TokenRequest, home: str, now: float) -> bool:
        shell = self._shells[home]
        request.request_id = f"{asked.key}, home {asked.num_homes}"
        try:
            shell.scheduler.add(*address(asked.key), request, 0, now)
        except QuireError:
            return False
        shell.admitted[request.request_id] = asked.n
        asked.is_resumed |= len(request.resumed) > 0 or asked.num_homes > 0
        asked.home, asked.num_homes, asked.over_before = home, asked.num_homes + 1, frozenset(asked.ends)
        for sequence in sorted(asked.finished):
            shell.scheduler.finish(*address(asked.key), sequence, now)
        return True

    def _receive(self, client: int, batch: scheduler_pb2.TokenBatch) -> None:
        handles, tokens = unpack_uint32(batch.handles).tolist(), unpack_int32(batch.token_ids).tolist()
        sequences = unpack_uint32(batch.sequences).tolist() if batch.sequences else [0] * len(handles)
        counts = unpack_uint32(batch.num_tokens).tolist() if batch.num_tokens else [1] * len(handles)
        start = 0
        for handle, sequence, count in zip(handles, sequences, counts, strict=True):
            self.asked[key_of(client, handle)].take(sequence, tokens[start : start + count])
            start += count
        for end in batch.ends:
            self.asked[key_of(client, end.handle)].end(end)


def new_request(key: int, prompt: list[int], n: int, max_tokens: int, now: float, fields: dict) -> Asked:
    """What is asked under `key`; `fields` of the TokenRequest, or `stop_token_ids`, or `resumed`: how many tokens."""
    stops, resumed = tuple(fields.pop("stop_token_ids", ())), fields.pop("resumed", 0)
    request = scheduler_pb2.TokenRequest(
        prompt_token_ids=pack_int32(prompt),
        n=n,
        tenant_policy=POLICIES.get(str(fields.get("tenant"))),
        sampling=types_pb2.SamplingParams(
            temperature=0, max_tokens=max_tokens, stop_token_ids=pack_int32(stops)
        ),
        **fields,
    )
    limit = min(max_tokens, MAX_MODEL_LEN - len(prompt))
    whole = expected_tokens(prompt, limit, VOCAB)
    last = next((position for position, token in enumerate(whole) if token in (*stops, 3)), limit)
    asked = Asked(key, request, prompt, n, whole[: last + 1], {index: [] for index in range(n)})
    if request.HasField("timeout_s"):
        asked.deadline = now + request.timeout_s
    if resumed:
        asked.tokens[n - 1] = asked.whole[:resumed]
        request.resumed.add(sequence=n - 1, token_ids=pack_int32(asked.tokens[n - 1]))
    return asked


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
