"""What the core sends, and when: one scheduler against row tables that check every command."""

from collections import deque
from math import inf

import pytest

from benchmarks.instant_rows import InstantRows, expected_tokens
from quire.errors import InvalidRequest, NotReady
from quire.packing import pack_int32, unpack_int32, unpack_uint32
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.core.step_tokens import ProtocolError

VOCAB = 1000


def describe(epoch: int = 1, **changes: int) -> worker_pb2.WorkerDescription:
    """A worker with 4 rows, 64 blocks of 16 tokens, and bursts of 8 steps."""
    model = types_pb2.ModelDescription(name="m", revision="r", vocab_size=VOCAB, max_model_len=512)
    fields = {"block_size": 16, "num_blocks": 64, "max_rows": 4, "max_step_tokens": 64, "max_decode_steps": 8}
    return worker_pb2.WorkerDescription(worker_epoch=epoch, model=model, **(fields | changes))


class Pair:
    """A scheduler and one worker named "w"; results wait until `answer` delivers them."""

    def __init__(self, limits: Limits | None = None, **changes: int) -> None:
        self.scheduler = Scheduler(limits or Limits(max_decode_steps=1))
        self.rows = InstantRows(describe(**changes))
        self.scheduler.attach("w", self.rows.description, 1, 0.0)
        self.now = 0.0
        self.step_s = 0.002
        self.commands: list[worker_pb2.StepCommand] = []
        self.results: deque[worker_pb2.StepResult] = deque()
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, scheduler_pb2.SequenceEnd] = {}

    def add(self, handle: int, prompt: list[int], max_tokens: int = 8, **fields: object) -> None:
        """Submit a request of client 1."""
        sampling = types_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens)
        request = scheduler_pb2.TokenRequest(
            prompt_token_ids=pack_int32(prompt),
            sampling=sampling,
            **fields,  # type: ignore[arg-type]
        )
        self.scheduler.add(1, handle, request, 0, self.now)

    def send(self) -> list[worker_pb2.StepCommand]:
        """Commands that go out now."""
        sent = []
        while (command := self.scheduler.schedule("w", self.now)) is not None:
            sent.append(command)
            result = self.rows.execute(command)
            result.step_s = self.step_s * max(1, command.decode_steps)
            self.results.append(result)
        self.commands += sent
        return sent

    def answer(self) -> None:
        """Deliver the oldest result."""
        self.now += self.step_s
        self.scheduler.apply("w", self.results.popleft(), self.now)
        for batch in self.scheduler.take_updates().values():
            self._take(batch)
        self.scheduler.check_integrity()

    def _take(self, batch: scheduler_pb2.TokenBatch) -> None:
        handles = unpack_uint32(batch.handles).tolist()
        counts = unpack_uint32(batch.num_tokens).tolist() if batch.num_tokens else [1] * len(handles)
        values, start = unpack_int32(batch.token_ids).tolist(), 0
        for handle, count in zip(handles, counts, strict=True):
            self.tokens.setdefault(handle, []).extend(values[start : start + count])
            start += count
        for end in batch.ends:
            self.ends[end.handle] = end

    def run(self) -> None:
        """Until nothing is left to do."""
        while self.send() or self.results:
            self.answer()
        for batch in self.scheduler.take_updates().values():
            self._take(batch)

    @property
    def blocks_used(self) -> int:
        pool = self.scheduler.replicas["w"].pool
        return pool.num_blocks - pool.num_free


def test_two_commands_go_out_before_any_result() -> None:
    pair = Pair()
    pair.add(1, [1, 2, 3])
    sent = pair.send()
    assert [command.step_id for command in sent] == [1, 2]
    assert unpack_uint32(sent[0].prefill_num_tokens).tolist() == [3]
    # The second decodes a token that the scheduler has not seen.
    assert sent[1].decode_steps == 1
    assert not sent[1].prefill_rows


def test_no_step_is_sent_past_the_limit_of_the_last_row() -> None:
    pair = Pair(Limits(max_decode_steps=1, pipeline_depth=8))
    pair.add(1, [1, 2, 3], max_tokens=4)
    sent = pair.send()
    # The chunk gives the first token, three decode steps the rest.
    assert [command.decode_steps for command in sent] == [0, 1, 1, 1]
    pair.run()
    assert pair.tokens[1] == expected_tokens([1, 2, 3], 4, VOCAB)
    assert pair.ends[1].finish_reason == types_pb2.FINISH_REASON_LENGTH


def test_a_steady_decode_command_is_small() -> None:
    pair = Pair()
    for handle in range(4):
        pair.add(handle, [handle] * 5, max_tokens=40)
    pair.run()
    steady = [command.ByteSize() for command in pair.commands if command.decode_steps == 1]
    assert sorted(steady)[len(steady) // 2] < 10
    assert max(steady) < 100


def test_commands_shorter_than_their_way_there_and_back_are_more_in_flight() -> None:
    pair = Pair()
    pair.step_s = 0.0006
    replica = pair.scheduler.replicas["w"]
    pair.add(1, [1, 2, 3], max_tokens=400)
    most = 0
    for _ in range(60):
        pair.send()
        most = max(most, len(replica.in_flight))
        pair.answer()
    assert most == 4
    pair.step_s = 0.02
    for _ in range(60):
        pair.answer()
        pair.send()
    pair.now += 0.018
    pair.send()
    assert len(replica.in_flight) == 2


def test_decoding_is_sent_shortly_before_the_worker_is_done_and_prompts_at_once() -> None:
    pair = Pair()
    pair.step_s = 0.02
    replica = pair.scheduler.replicas["w"]
    pair.add(1, [1, 2, 3], max_tokens=400)
    for _ in range(20):
        pair.send()
        pair.answer()
    assert len(pair.send()) == 1
    begun = pair.now
    pair.now = begun + 0.01
    assert pair.send() == []
    assert begun + 0.015 < pair.scheduler.wake_at(pair.now) < begun + 0.018
    pair.add(2, [4, 5, 6])
    (with_prompt,) = pair.send()
    assert unpack_uint32(with_prompt.prefill_num_tokens).tolist() == [3]
    pair.answer()
    pair.now += 0.018
    assert pair.scheduler.wake_at(pair.now) == inf
    assert len(pair.send()) == 1
    assert len(replica.in_flight) == 2


def test_decode_comes_first_and_prompts_share_what_the_budget_leaves() -> None:
    pair = Pair()
    pair.add(1, [1], max_tokens=50)
    pair.send()
    pair.add(2, [2] * 100, max_tokens=50)
    pair.add(3, [3] * 20, max_tokens=50)
    pair.answer()
    (command,) = pair.send()
    assert command.decode_steps == 1
    assert unpack_uint32(command.prefill_num_tokens).tolist() == [63]
    pair.answer()
    (command,) = pair.send()
    assert unpack_uint32(command.prefill_num_tokens).tolist() == [37, 20]


def test_bursts_follow_the_measured_step_and_end_while_a_prompt_waits() -> None:
    pair = Pair(Limits(max_decode_steps=16, decode_burst_s=0.008))
    pair.step_s = 0.001
    pair.add(1, [1], max_tokens=100)
    for _ in range(4):
        pair.send()
        pair.answer()
    assert pair.commands[-1].decode_steps == 8
    pair.add(2, [2] * 100, max_tokens=5)
    pair.send()
    assert pair.commands[-1].decode_steps == 1
    pair.run()
    assert pair.tokens[1] == expected_tokens([1], 100, VOCAB)
    pair.step_s = 0.02
    pair.add(3, [3], max_tokens=60)
    pair.run()
    assert pair.commands[-2].decode_steps == 1


def test_cancelled_work_is_free_within_two_steps() -> None:
    pair = Pair()
    pair.add(1, [1] * 40, max_tokens=200)
    for _ in range(10):
        pair.send()
        pair.answer()
    pair.send()
    sent = pair.commands[-1].step_id
    pair.scheduler.cancel(1, 1, pair.now)
    seen = list(pair.tokens[1])
    pair.run()
    assert pair.commands[-1].step_id - sent <= 2
    assert pair.blocks_used == 0
    assert pair.tokens[1] == seen
    assert not pair.ends
    (ending,) = pair.scheduler.take_endings()
    assert ending.usage.computed_tokens == pair.rows.tokens_computed


def test_a_known_prefix_is_not_computed_again_and_is_counted() -> None:
    pair = Pair()
    pair.add(1, list(range(50)), max_tokens=4)
    pair.run()
    pair.add(2, [*range(48), 7, 7], max_tokens=4)
    pair.run()
    assert (pair.ends[1].usage.cached_tokens, pair.ends[2].usage.cached_tokens) == (0, 48)
    assert pair.ends[2].usage.computed_tokens == 2 + 3
    assert pair.tokens[2] == expected_tokens([*range(48), 7, 7], 4, VOCAB)


def test_a_wholly_cached_prompt_still_computes_its_last_block() -> None:
    pair = Pair()
    for handle in (1, 2):
        pair.add(handle, list(range(48)), max_tokens=4)
        pair.run()
    assert pair.ends[2].usage.cached_tokens == 32
    assert pair.tokens[1] == pair.tokens[2]


def test_output_is_a_prefix_for_the_next_turn() -> None:
    pair = Pair()
    pair.add(1, list(range(30)), max_tokens=40)
    pair.run()
    pair.add(2, [*range(30), *pair.tokens[1], 1, 2], max_tokens=4)
    pair.run()
    # 70 tokens, of which the last one's KV was never computed: four full blocks.
    assert pair.ends[2].usage.cached_tokens == 64


@pytest.mark.parametrize("fields", [{"tenant": "other"}, {"cache_salt": "other"}])
def test_tenants_and_salts_share_nothing(fields: dict[str, str]) -> None:
    pair = Pair()
    pair.add(1, list(range(50)))
    pair.run()
    pair.add(2, list(range(50)), **fields)
    pair.run()
    assert pair.ends[2].usage.cached_tokens == 0


def test_when_blocks_run_out_the_youngest_waits_and_all_end_exactly() -> None:
    pair = Pair(num_blocks=10)
    prompts = {handle: [handle] * 30 for handle in range(3)}
    for handle, prompt in prompts.items():
        pair.add(handle, prompt, max_tokens=80)
    pair.run()
    assert pair.tokens == {handle: expected_tokens(prompt, 80, VOCAB) for handle, prompt in prompts.items()}
    usages = {handle: end.usage for handle, end in pair.ends.items()}
    assert usages[0].preemptions == 0
    assert usages[2].preemptions > 0
    assert usages[2].recomputed_tokens > 0
    assert sum(usage.computed_tokens for usage in usages.values()) == pair.rows.tokens_computed
    assert pair.blocks_used == 0


def test_lower_priority_values_get_rows_first() -> None:
    pair = Pair(max_rows=1)
    pair.add(1, [1], priority=1)
    pair.add(2, [2], priority=0)
    (command, *_) = pair.send()
    assert unpack_int32(command.add_rows[0].token_ids).tolist() == [2]


def test_a_request_past_its_deadline_ends_with_that_error_wherever_it_is() -> None:
    pair = Pair(max_rows=1)
    pair.add(1, [1], max_tokens=400, timeout_s=0.5)
    pair.add(2, [2], timeout_s=0.5)
    pair.send()
    assert pair.scheduler.next_deadline() == 0.5
    pair.now = 0.6
    pair.run()
    assert {end.error.code for end in pair.ends.values()} == {types_pb2.ERROR_CODE_DEADLINE_EXCEEDED}
    assert pair.ends[1].usage.computed_tokens == pair.rows.tokens_computed
    assert pair.ends[2].usage.computed_tokens == 0


def test_a_handle_used_twice_ends_both() -> None:
    pair = Pair()
    pair.add(1, [1], max_tokens=400)
    pair.send()
    with pytest.raises(InvalidRequest):
        pair.add(1, [2])
    pair.run()
    assert pair.scheduler.num_requests == 0
    assert not pair.ends


def test_a_resumed_sequence_that_was_complete_ends_without_a_row() -> None:
    pair = Pair()
    done = scheduler_pb2.ResumedSequence(token_ids=pack_int32([5] * 8))
    pair.add(1, [1], max_tokens=8, resumed=[done])
    pair.run()
    assert pair.commands == []
    assert pair.ends[1].finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert pair.ends[1].usage.completion_tokens == 8


def test_a_row_that_fails_ends_alone() -> None:
    pair = Pair()
    pair.add(1, [1], max_tokens=8)
    pair.add(2, [2], max_tokens=8)
    pair.send()
    result = pair.results[0]
    error = types_pb2.Error(code=types_pb2.ERROR_CODE_INTERNAL, message="not a number")
    row, epoch = unpack_uint32(result.rows).tolist()[0], unpack_uint32(result.epochs).tolist()[0]
    pair.rows._done[row] = True
    result.rows, result.epochs = result.rows[4:], result.epochs[4:]
    result.token_ids, result.finish_reasons = result.token_ids[4:], result.finish_reasons[1:]
    result.errors.add(row=row, epoch=epoch, error=error)
    # The command behind it was executed before the row failed here; a worker would have left the row out.
    pair.results[1] = _without_row(pair.results[1], row)
    pair.run()
    assert pair.ends[1].error.message == "not a number"
    assert pair.tokens[2] == expected_tokens([2], 8, VOCAB)
    assert pair.blocks_used == 0


def _without_row(result: worker_pb2.StepResult, row: int) -> worker_pb2.StepResult:
    entry = unpack_uint32(result.rows).tolist().index(row)
    for name in ("rows", "epochs", "token_ids"):
        column = getattr(result, name)
        setattr(result, name, column[: 4 * entry] + column[4 * entry + 4 :])
    result.finish_reasons = result.finish_reasons[:entry] + result.finish_reasons[entry + 1 :]
    return result


@pytest.mark.parametrize(
    "change",
    [
        {"step_id": 9},
        {"rows": pack_int32([99])},
        {"rows": b"\1"},
        {"token_ids": b""},
        {"num_tokens": pack_int32([300]), "token_ids": pack_int32([1] * 300)},
    ],
)
def test_a_result_that_makes_no_sense_is_a_protocol_error(change: dict[str, object]) -> None:
    pair = Pair()
    pair.add(1, [1])
    pair.send()
    for name, value in change.items():
        setattr(pair.results[0], name, value)
    with pytest.raises(ProtocolError):
        pair.answer()
    pair.scheduler.detach("w", pair.now)
    pair.scheduler.check_integrity()
    assert len(pair.scheduler.queue) == 1


@pytest.mark.parametrize(("epoch", "cached"), [(1, 48), (2, 0)])
def test_blocks_outlive_a_stream_but_not_the_worker_s_process(epoch: int, cached: int) -> None:
    pair = Pair()
    pair.add(1, list(range(50)))
    pair.run()
    pair.scheduler.detach("w", pair.now)
    if epoch == 1:
        pair.rows.clear()
    else:
        pair.rows = InstantRows(describe(epoch))
    pair.scheduler.attach("w", pair.rows.description, 2, pair.now)
    pair.add(2, list(range(50)))
    pair.run()
    assert pair.ends[2].usage.cached_tokens == cached


def test_the_same_events_give_the_same_bytes() -> None:
    def history() -> list[bytes]:
        pair = Pair(num_blocks=12)
        for handle in range(6):
            pair.add(handle, [handle] * 20, max_tokens=50)
            pair.send()
            if handle == 4:
                pair.scheduler.cancel(1, 2, pair.now)
        pair.run()
        return [command.SerializeToString(deterministic=True) for command in pair.commands]

    assert history() == history()


def asking(prompt: list[int], **fields: object) -> scheduler_pb2.TokenRequest:
    return scheduler_pb2.TokenRequest(prompt_token_ids=pack_int32(prompt), **fields)


def computed(step_id: int, rows: list[int], tokens_computed: int) -> worker_pb2.StepResult:
    """A result in which each of these rows, new ones, has its first token."""
    result = worker_pb2.StepResult(step_id=step_id, tokens_computed=tokens_computed, step_s=0.01)
    result.rows, result.epochs = pack_int32(rows), pack_int32([1] * len(rows))
    result.token_ids, result.finish_reasons = pack_int32([5] * len(rows)), bytes(len(rows))
    return result


def test_work_goes_to_the_replica_that_knows_the_prefix_then_to_the_emptier() -> None:
    scheduler = Scheduler(Limits())
    for name, epoch in (("a", 1), ("b", 2)):
        scheduler.attach(name, describe(epoch), 1, 0.0)
    first, second = asking(list(range(40))), asking(list(range(1, 41)))
    scheduler.add(1, 0, first, 0, 0.0)
    scheduler.add(1, 1, second, 0, 0.0)
    added = {name: scheduler.schedule(name, 0.0) for name in ("a", "b")}
    assert all(command is not None and len(command.add_rows) == 1 for command in added.values())
    scheduler.apply("b", computed(1, [0], 40), 0.1)
    scheduler.add(1, 7, second, 0, 0.2)
    command = scheduler.schedule("a", 0.2)
    assert command is None or not command.add_rows
    command = scheduler.schedule("b", 0.2)
    assert command is not None
    assert command.add_rows[0].num_computed_tokens == 32


@pytest.mark.parametrize("kind", ["n of one request", "two requests at once"])
def test_a_prefix_that_is_being_computed_is_waited_for(kind: str) -> None:
    scheduler = Scheduler(Limits())
    scheduler.attach("a", describe(), 1, 0.0)
    prompt = list(range(40))
    if kind == "n of one request":
        scheduler.add(1, 0, asking(prompt, n=2), 0, 0.0)
    else:
        for handle in range(2):
            scheduler.add(1, handle, asking(prompt), 0, 0.0)
    command = scheduler.schedule("a", 0.0)
    assert command is not None
    assert len(command.add_rows) == 1
    scheduler.apply("a", computed(1, [0], 40), 0.1)
    command = scheduler.schedule("a", 0.1)
    assert command is not None
    assert [added.num_computed_tokens for added in command.add_rows] == [32]


def test_who_waits_for_a_prefix_computes_it_when_the_other_is_cancelled() -> None:
    scheduler = Scheduler(Limits())
    scheduler.attach("a", describe(), 1, 0.0)
    for handle in range(2):
        scheduler.add(1, handle, asking(list(range(40))), 0, 0.0)
    scheduler.schedule("a", 0.0)
    scheduler.cancel(1, 0, 0.0)
    command = scheduler.schedule("a", 0.1)
    assert command is not None
    assert [added.num_computed_tokens for added in command.add_rows] == [0]
    scheduler.check_integrity()


def test_a_public_prefix_is_shared_between_tenants_and_nothing_after_it() -> None:
    scheduler = Scheduler(Limits())
    scheduler.attach("a", describe(), 1, 0.0)
    prompt = list(range(60))

    def cached(handle: int, tenant: str, num_public: int) -> int:
        scheduler.add(1, handle, asking(prompt, tenant=tenant, public_prefix_tokens=num_public), 0, 0.0)
        command = scheduler.schedule("a", 0.0)
        assert command is not None
        (added,) = command.add_rows
        result = computed(command.step_id, [added.row], 60)
        result.epochs = pack_int32([added.epoch])
        scheduler.apply("a", result, 0.1)
        scheduler.cancel(1, handle, 0.1)
        command = scheduler.schedule("a", 0.1)
        assert command is not None
        scheduler.apply("a", worker_pb2.StepResult(step_id=command.step_id), 0.1)
        return added.num_computed_tokens

    assert cached(1, "x", 40) == 0
    assert cached(2, "y", 40) == 32
    assert cached(3, "z", 0) == 0
    assert cached(4, "x", 40) == 48


def test_a_worker_that_leaves_hands_its_sequences_on() -> None:
    scheduler = Scheduler(Limits())
    scheduler.attach("a", describe(), 1, 0.0)
    scheduler.add(1, 0, asking(list(range(40))), 0, 0.0)
    assert scheduler.schedule("a", 0.0) is not None
    scheduler.attach("b", describe(2), 2, 0.0)
    result = computed(1, [0], 40)
    result.draining = True
    scheduler.apply("a", result, 0.1)
    removal, moved = scheduler.schedule("a", 0.1), scheduler.schedule("b", 0.1)
    assert removal is not None
    assert len(removal.remove_rows) == 4
    assert moved is None, "it moves when its row is given back"
    scheduler.apply("a", worker_pb2.StepResult(step_id=2), 0.2)
    moved = scheduler.schedule("b", 0.2)
    assert moved is not None
    assert len(moved.add_rows[0].token_ids) == 4 * 41
    scheduler.add(1, 1, asking([1, 2]), 0, 0.3)
    assert scheduler.schedule("a", 0.3) is None


def test_nothing_is_taken_before_a_worker_was_seen_and_other_models_are_refused() -> None:
    scheduler = Scheduler(Limits())
    request = scheduler_pb2.TokenRequest(prompt_token_ids=pack_int32([1]))
    with pytest.raises(NotReady):
        scheduler.add(1, 1, request, 0, 0.0)
    scheduler.attach("a", describe(), 1, 0.0)
    other = describe(2)
    other.model.revision = "another"
    with pytest.raises(ProtocolError):
        scheduler.attach("b", other, 1, 0.0)
