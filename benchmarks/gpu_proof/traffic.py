"""Random traffic through scheduler and worker: no wrong token, preemptions and cancellations included; memory flat.

The demo model in float32 with a KV cache too small for the rows that run, so that sequences are preempted all the time
and computed again through the prefix cache. Clients draw a request, wait for its end or cancel it after some tokens,
think for a moment, and draw the next. Every token of every greedy request, and of every seeded one without filters, is
held against transformers (`reference`), those of cancelled requests too.
"""

import asyncio
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer

from benchmarks.gpu_proof.memory import MemoryLog, growth
from benchmarks.gpu_proof.reference import Findings, Reference, Transcript
from benchmarks.gpu_proof.report import Report
from benchmarks.gpu_proof.requests import Ask, RequestSource, chat_prompts
from benchmarks.gpu_proof.services import Services, request_name, running_services, say
from benchmarks.gpu_proof.token_session import Output, token_request
from scheduler_svc.core.validation import sequence_seed

_STEP_TOKENS = 768
"""So few that many prompts are computed in several chunks."""
_JUDGED_AT_ONCE = 64
_MOST_WAITING = 1024
"""Sequences that wait for their judgement before clients do, so that little is left to do at the end."""
_SAY_EVERY_S = 20.0


@dataclass(frozen=True)
class TrafficOptions:
    """How much of it."""

    model: Path
    device: str
    seconds: float
    clients: int
    rows: int
    kv_cache_memory: str
    max_model_len: int
    think_s: float = 0.02
    """Mean of the time between one request of a client and its next one."""
    seed: int = 1
    sample_every_s: float = 2.0


@dataclass
class Tally:
    """What happened."""

    requests: Counter[str] = field(default_factory=Counter)
    """By what became of them."""
    usage: Counter[str] = field(default_factory=Counter)
    """Sums of the ledgers of sequences that ended by themselves."""
    greedy: Findings = field(default_factory=Findings)
    seeded: Findings = field(default_factory=Findings)
    tokens: int = 0
    """All that came."""
    errors: list[str] = field(default_factory=list)


class Traffic:
    """Clients, and the judge beside them."""

    def __init__(self, services: Services, source: RequestSource, options: TrafficOptions) -> None:
        self._services = services
        self._source = source
        self._options = options
        self._rng = Random(options.seed + 1)
        self._waiting: list[Transcript] = []
        self.tally = Tally()

    async def run(self, reference: Reference, memory: MemoryLog) -> None:
        """Until the time is over and all has been judged; memory is sampled first and last while the services idle."""
        await memory.sample()
        ends = time.monotonic() + self._options.seconds
        sampling = asyncio.create_task(memory.run(self._options.sample_every_s), name="memory")
        judging = asyncio.create_task(self._judge(reference, ends), name="judge")
        clients = [self._client(ends) for _ in range(self._options.clients)]
        try:
            await self._services.local.guard(asyncio.gather(*clients))
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
            await self._until_idle()
            await memory.sample()
            await judging
        finally:
            for task in (sampling, judging):
                task.cancel()
            await asyncio.gather(sampling, judging, return_exceptions=True)

    async def _client(self, ends: float) -> None:
        while time.monotonic() < ends:
            await asyncio.sleep(self._rng.expovariate(1 / self._options.think_s))
            if len(self._waiting) > _MOST_WAITING:
                continue
            ask = self._source.draw()
            name = request_name()
            live = self._services.session.submit(
                token_request(name, ask.prompt, ask.sampling, n=ask.n), cancel_after=ask.cancel_after
            )
            try:
                await live.done
            except Exception as error:  # a request that fails is a finding
                self.tally.requests["failed"] += 1
                self.tally.errors.append(f"{type(error).__name__}: {error}")
                continue
            self.tally.requests["cancelled" if live.is_cancelled else "finished"] += 1
            for index, output in enumerate(live.outputs):
                self._take(ask, index, output, name)

    def _take(self, ask: Ask, index: int, output: Output, name: str) -> None:
        tally, params = self.tally, ask.sampling
        tally.tokens += len(output.tokens)
        if output.usage is not None:
            tally.usage["sequences"] += 1
            for entry in (
                "completion_tokens",
                "cached_tokens",
                "computed_tokens",
                "recomputed_tokens",
                "preemptions",
            ):
                tally.usage[entry] += getattr(output.usage, entry)
            if output.usage.completion_tokens != len(output.tokens):
                tally.errors.append(f"{name}: {len(output.tokens)} tokens came, its ledger differs")
        if not ask.is_judged:
            tally.requests["sequences not judged"] += 1
            return
        transcript = Transcript(
            ask.prompt, output.tokens, params.temperature, sequence_seed(params.seed, index), output.logprobs, name
        )  # fmt: skip
        self._waiting.append(transcript)
        if output.usage is not None and params.temperature == 0:
            self._source.ended.append([*ask.prompt, *output.tokens])

    async def _judge(self, reference: Reference, ends: float) -> None:
        """Beside the traffic, so that little is left at its end."""
        said = time.monotonic()
        while self._waiting or time.monotonic() < ends or self._services.session.num_live:
            if len(self._waiting) < _JUDGED_AT_ONCE and self._services.session.num_live:
                await asyncio.sleep(0.05)
            else:
                batch, self._waiting = self._waiting[:_JUDGED_AT_ONCE], self._waiting[_JUDGED_AT_ONCE:]
                await asyncio.to_thread(self._judge_batch, reference, batch)
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                say(f"{dict(self.tally.requests)}, {self.tally.greedy.num_tokens} greedy tokens judged, "
                    f"{self.tally.greedy.num_wrong} wrong, {len(self._waiting)} sequences wait")  # fmt: skip

    def _judge_batch(self, reference: Reference, batch: list[Transcript]) -> None:
        tally = self.tally
        reference.judge([item for item in batch if item.temperature == 0], tally.greedy)
        reference.judge([item for item in batch if item.temperature > 0], tally.seeded)

    async def _until_idle(self) -> None:
        """Rows and blocks of cancelled requests go with the next commands."""
        for _ in range(200):
            status = await self._services.worker_status()
            if status.rows_used == 0:
                return
            await asyncio.sleep(0.05)


async def prove_traffic(options: TrafficOptions) -> Report:
    """Run it, and report."""
    worker: dict[str, object] = {
        "device": options.device,
        "dtype": "float32",
        "max_rows": options.rows,
        "max_step_tokens": _STEP_TOKENS,
        "max_model_len": options.max_model_len,
        "kv_cache_memory": options.kv_cache_memory,
        "threads": 1,
    }
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    prompts = chat_prompts(tokenizer, 25, options.seed)
    reference = Reference(options.model, options.device)
    async with running_services(str(options.model), worker, {}) as services:
        limit = services.description.model.max_model_len
        vocab_size = services.session.model.vocab_size
        source = RequestSource(prompts, vocab_size, limit, Random(options.seed))
        traffic = Traffic(services, source, options)
        memory = MemoryLog(services)
        await traffic.run(reference, memory)
        worker_left = await services.worker_status()
        scheduler_left = await services.session.status()
        restarts = services.local.num_restarts
    left = {
        "rows": worker_left.rows_used,
        "blocks": worker_left.blocks_used,
        "sequences": scheduler_left.sequences_running + scheduler_left.sequences_waiting,
        "steps": worker_left.steps_executed,
        "restarts": restarts,
    }
    return _report(options, traffic.tally, memory, left)


def _report(options: TrafficOptions, tally: Tally, memory: MemoryLog, left: dict[str, int]) -> Report:
    kept = growth(memory.samples)
    # The libraries' own workspaces are made at their first use.
    begun = [sample.gpu_allocated for sample in memory.samples[len(memory.samples) // 10 :]]
    left_over = begun[-1] - min(begun)
    judged = {"greedy": tally.greedy, "seeded": tally.seeded}
    rows: list[dict[str, object]] = [
        {
            "requests": kind,
            "tokens judged": found.num_tokens,
            "exact": found.num_exact,
            "ties": found.num_ties,
            "largest tie": found.largest_tie,
            "wrong": found.num_wrong,
            "logprob error": found.largest_logprob_error if found.num_logprobs else None,
        }
        for kind, found in judged.items()
    ]
    claims = {
        "no wrong token in greedy requests": tally.greedy.num_tokens > 0 and not tally.greedy.num_wrong,
        "no wrong token in seeded requests": not tally.seeded.num_wrong,
        "log-probabilities within 1e-3": tally.greedy.largest_logprob_error <= 1e-3,
        "sequences were preempted, and requests cancelled": tally.usage["preemptions"] > 0
        and tally.requests["cancelled"] > 0,
        "no request failed, no service died": not tally.errors and not left["restarts"],
        "rows and blocks are free at the end": not (left["rows"] or left["blocks"] or left["sequences"]),
        "what torch holds of the GPU's memory is flat": kept["gpu_allocated"]["is_flat"]
        and kept["gpu_reserved"]["is_flat"],
        "tensors take what they took after the first tenth, within 2 MiB, once it is over": left_over
        <= 2 << 20,
        "the worker's resident memory is flat": kept["worker_resident"]["is_flat"],
    }
    details: dict[str, Any] = {
        "requests": dict(tally.requests),
        "ledger": dict(tally.usage),
        "tokens": tally.tokens,
        "left": left,
        "errors": tally.errors[:10],
        "findings": {kind: found.as_dict() for kind, found in judged.items()},
        "memory": kept,
        "gpu_allocated_left_over": left_over,
        "memory_samples": [asdict(sample) for sample in memory.samples],
    }
    say(f"requests {dict(tally.requests)}; ledger {dict(tally.usage)}; at the end {left}")
    for name, half in kept.items():
        first, second = (half[part] / 2**20 for part in ("first_half", "second_half"))
        say(f"{name}: median {first:.1f} MiB in the first half, {second:.1f} in the second")
    return Report("traffic", {**asdict(options), "model": options.model.name}, rows, claims, details)
