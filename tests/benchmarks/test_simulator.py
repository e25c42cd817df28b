"""The simulator keeps its promises: nothing lost, the same figures for the same seed, hand-computed step times."""

import numpy as np
import pytest

from benchmarks.simulate import make_node
from benchmarks.simulator.node import Node
from benchmarks.simulator.recorder import Outcome, Recorder
from benchmarks.simulator.report import Spread, jain_index, summarise
from benchmarks.simulator.run import Simulation
from benchmarks.simulator.scenarios import SCENARIOS
from benchmarks.simulator.step_time import H200, SHAPES, StepWork, step_time_s
from benchmarks.simulator.traces import Conversation, Draw, Trace, Turn, burst, chat
from benchmarks.simulator.worker_model import LINK_S, SimulatedWorker, describe
from quire.packing import pack_int32, pack_uint32
from quire.v1 import types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.scheduler import Scheduler

SHAPE = SHAPES["llama-8b"]


def small_chat(seed: int = 0) -> Trace:
    """About twenty conversations."""
    conversations = chat(
        Draw(seed),
        rate=4.0,
        duration_s=5.0,
        turns=(2, 4),
        system=(20, 60),
        message=(5, 40),
        output=(5, 30),
        think_s=0.5,
    )
    return Trace("chat", tuple(conversations))


def run(trace: Trace, replicas: int = 2) -> Recorder:
    """Play a trace against replicas whose pools are too small for it, so that blocks are evicted and preempted."""
    return Simulation(trace, [make_node(SHAPE, replicas, num_blocks=200)]).run()


def worker(max_rows: int = 4) -> SimulatedWorker:
    """A worker of llama-8b."""
    return SimulatedWorker(describe("w", 1, SHAPE, H200, max_rows=max_rows, num_blocks=64), SHAPE, H200)


def row(number: int, prompt: list[int], blocks: list[int], max_total_tokens: int) -> worker_pb2.RowAdd:
    """A row that nothing stops but its length."""
    return worker_pb2.RowAdd(
        row=number,
        epoch=1,
        token_ids=pack_int32(prompt),
        num_prompt_tokens=len(prompt),
        block_ids=pack_int32(blocks),
        max_total_tokens=max_total_tokens,
        sampling=types_pb2.SamplingParams(seed=1),
    )


class TestStepTime:
    def test_shapes_have_the_published_sizes(self) -> None:
        llama, qwen = SHAPES["llama-8b"], SHAPES["qwen3-0.6b"]
        assert llama.step_weight_bytes == pytest.approx(15.01e9, rel=1e-3)
        assert llama.kv_bytes_per_position == 128 * 1024
        assert 2 * llama.layer_parameters == pytest.approx(13.96e9, rel=1e-3)
        assert qwen.step_weight_bytes == pytest.approx(1.19e9, rel=5e-3)
        assert qwen.kv_bytes_per_position == 112 * 1024
        assert 2 * qwen.layer_parameters == pytest.approx(0.88e9, rel=5e-3)

    def test_one_decoding_row_takes_the_time_to_read_the_weights(self) -> None:
        # 15.01 GB at 4.15 TB/s is 3.617 ms; 1,000 positions of KV, 131 MB, are 0.0316 ms more.
        work = StepWork(num_positions=1, num_samples=1, kv_positions=1000, attention_pairs=1000)
        assert step_time_s(work, SHAPE, H200) - H200.overhead_s == pytest.approx(3.649e-3, rel=1e-3)

    def test_a_chunk_takes_the_time_of_its_arithmetic(self) -> None:
        # 2,048 × 13.959 GFLOP + 1.05 GFLOP for the logits + 2,098,176 pairs × 524,288 = 29.69 TFLOP, at 762 a second.
        work = StepWork(2048, 1, 2048, 2048 * 2049 // 2)
        assert step_time_s(work, SHAPE, H200) - H200.overhead_s == pytest.approx(38.96e-3, rel=1e-3)


class TestWorker:
    def test_a_command_of_several_steps_takes_the_time_of_each(self) -> None:
        simulated = worker()
        added = row(0, list(range(20)), [0, 1], 32)
        command = worker_pb2.StepCommand(
            step_id=1,
            add_rows=[added],
            prefill_rows=pack_uint32([0]),
            prefill_num_tokens=pack_uint32([20]),
            decode_steps=3,
        )
        _, result = simulated.send(command, 0.0)
        expected = [StepWork(20, 1, 20, 210), StepWork(1, 1, 21, 21), StepWork(1, 1, 22, 22)]
        assert result.step_s == pytest.approx(sum(step_time_s(work, SHAPE, H200) for work in expected))

    def test_decoding_reads_the_kv_of_every_row_beside_the_chunk(self) -> None:
        simulated = worker()
        first = worker_pb2.StepCommand(
            step_id=1,
            add_rows=[row(0, list(range(20)), [0, 1], 32)],
            prefill_rows=pack_uint32([0]),
            prefill_num_tokens=pack_uint32([20]),
        )
        second = worker_pb2.StepCommand(
            step_id=2,
            add_rows=[row(1, list(range(40)), [2, 3, 4], 48)],
            prefill_rows=pack_uint32([1]),
            prefill_num_tokens=pack_uint32([30]),
            decode_steps=1,
        )
        simulated.send(first, 0.0)
        _, result = simulated.send(second, 0.0)
        assert result.step_s == pytest.approx(step_time_s(StepWork(31, 1, 51, 465 + 21), SHAPE, H200))

    def test_commands_run_one_after_the_other_whatever_their_number_in_flight(self) -> None:
        simulated = worker()
        prefill = worker_pb2.StepCommand(
            step_id=1,
            add_rows=[row(0, list(range(20)), [0, 1], 32)],
            prefill_rows=pack_uint32([0]),
            prefill_num_tokens=pack_uint32([20]),
        )
        first_at, first = simulated.send(prefill, 1.0)
        second_at, second = simulated.send(worker_pb2.StepCommand(step_id=2, decode_steps=1), 1.0)
        assert first_at == pytest.approx(1.0 + first.step_s + 2 * LINK_S)
        assert second_at == pytest.approx(first_at + second.step_s)


class TestSimulation:
    def test_every_request_ends_and_every_token_arrives(self) -> None:
        trace = small_chat()
        recorder = run(trace)
        wanted = [turn.output_tokens for each in trace.conversations for turn in each.turns]
        assert (recorder.outcome == Outcome.DONE).all()
        assert recorder.output_tokens.tolist() == wanted
        assert sum(int(each.counts.sum()) for each in recorder.deliveries) == sum(wanted)
        assert (recorder.sent_at < recorder.first_token_at).all()
        assert (recorder.first_token_at <= recorder.last_token_at).all()
        assert (recorder.last_token_at <= recorder.ended_at).all()

    def test_later_turns_wait_for_the_reply_and_read_it_from_the_cache(self) -> None:
        first, second = (
            Turn(np.arange(64, dtype=np.int32), 40),
            Turn(np.arange(8, dtype=np.int32), 4, think_s=2.0),
        )
        recorder = run(Trace("one", (Conversation(1.0, (first, second)),)), replicas=1)
        assert recorder.sent_at.tolist() == [1.0, recorder.ended_at[0] + 2.0]
        assert recorder.prompt_tokens.tolist() == [64, 64 + 40 + 8]
        # The last token of the reply was never computed: 103 positions have KV, six full blocks of 16.
        assert recorder.cached_tokens.tolist() == [0, 96]

    def test_the_same_seed_gives_the_same_times_to_the_bit(self) -> None:
        first, second, other = run(small_chat()), run(small_chat()), run(small_chat(seed=1))
        assert first.first_token_at.tobytes() == second.first_token_at.tobytes()
        assert first.ended_at.tobytes() == second.ended_at.tobytes()
        assert first.ended_at.tobytes() != other.ended_at.tobytes()

    def test_a_full_queue_refuses_and_a_deadline_ends_what_was_let_in(self) -> None:
        scheduler = Scheduler(Limits(max_queue_sequences=8))
        simulated = worker(max_rows=1)
        asked = list(burst(Draw(0), at_s=0.0, count=30, prompt=(100, 200), output=(50, 60), tenant="t"))
        # Let in before anything is known of the worker's speed.
        hurried = Conversation(0.0, (Turn(np.arange(15, dtype=np.int32), 450, timeout_s=0.5),))
        recorder = Simulation(Trace("overload", (hurried, *asked)), [Node(scheduler, {"w": simulated})]).run()
        refused = recorder.outcome == Outcome.REFUSED
        assert refused.any()
        assert (recorder.retry_after_s[refused] >= 1.0).all()
        assert (recorder.outcome == Outcome.EXPIRED).any()
        assert (recorder.outcome == Outcome.DONE).any()

    def test_with_four_times_the_load_nine_tenths_of_the_best_are_done_in_time(self) -> None:
        traces = SCENARIOS["overload"].traces(0, 1.0)
        done = {}
        for trace in (traces[0], traces[-1]):
            recorder = Simulation(trace, [make_node(SHAPE, 1, num_blocks=None)]).run()
            done[trace.name] = (recorder.outcome == Outcome.DONE).sum() / np.nanmax(recorder.ended_at)
        once, four_times = done.values()
        assert four_times >= 0.9 * once

    def test_a_conversation_is_over_when_a_turn_is_refused(self) -> None:
        turns = (
            Turn(np.arange(9, dtype=np.int32), 400, timeout_s=0.1),
            Turn(np.arange(9, dtype=np.int32), 4),
        )
        recorder = run(Trace("one", (Conversation(0.0, turns),)), replicas=1)
        assert recorder.outcome[0] != Outcome.DONE
        assert recorder.outcome[1] == Outcome.NOT_SENT


class TestReport:
    def test_figures_of_a_run_add_up(self) -> None:
        recorder = run(small_chat())
        report = summarise(recorder, trace="chat", policy="core", weights={}, busy_s=[1.0, 2.0], wall_s=0.0)
        assert report.requests == report.done == recorder.num_requests
        assert report.output_tokens_per_s * report.simulated_s == pytest.approx(recorder.output_tokens.sum())
        assert 0.0 < report.hit_rate < 1.0
        assert report.ttft_s.p50 <= report.ttft_s.p99
        assert report.jain == 1.0

    def test_service_is_counted_while_every_tenant_waits(self) -> None:
        asked = [
            Conversation(0.0, (Turn(np.arange(50, dtype=np.int32), 10),), tenant)
            for tenant in "ab"
            for _ in range(3)
        ]
        recorder = Simulation(
            Trace("two", tuple(asked)), [Node(Scheduler(Limits()), {"w": worker(max_rows=2)})]
        ).run()
        report = summarise(recorder, trace="two", policy="cost", weights={"b": 2.0}, busy_s=[1.0], wall_s=0.0)
        until = min(recorder.first_token_at[:3].max(), recorder.first_token_at[3:].max())
        started = recorder.first_token_at <= until
        output = [
            sum(int(d.counts[d.requests // 3 == tenant].sum()) for d in recorder.deliveries if d.at <= until)
            for tenant in (0, 1)
        ]
        computed = [
            int((recorder.prompt_tokens - recorder.cached_tokens)[own][started[own]].sum())
            for own in (slice(3), slice(3, 6))
        ]
        assert report.service == {"a": computed[0] + 2 * output[0], "b": (computed[1] + 2 * output[1]) / 2}

    def test_percentiles_count_each_value_as_often_as_its_weight(self) -> None:
        spread = Spread.of(np.asarray([3.0, 1.0, 2.0]), np.asarray([1, 97, 2]))
        assert (spread.p50, spread.p99) == (1.0, 2.0)
        assert spread.mean == pytest.approx(1.04)

    def test_jain_index_is_one_for_equals_and_one_in_n_for_one_who_has_all(self) -> None:
        assert jain_index(np.asarray([5.0, 5.0, 5.0])) == pytest.approx(1.0)
        assert jain_index(np.asarray([9.0, 0.0, 0.0])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", SCENARIOS)
def test_traces_of_a_scenario_depend_on_the_seed_alone(name: str) -> None:
    def digest(seed: int) -> list[object]:
        return [
            (trace.name, each.arrival_s, each.tenant, each.turns[0].message.tobytes())
            for trace in SCENARIOS[name].traces(seed, 0.25)
            for each in trace.conversations
        ]

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)
