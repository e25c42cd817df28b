"""Workers whose steps take a time of their own, on a clock that only they move: for what waits how long for whom."""

from collections import deque
from random import Random

from benchmarks.instant_rows import InstantRows
from quire.packing import pack_int32, unpack_uint32
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.scheduler import Scheduler

VOCAB = 1000
STEP_S = 0.005
TOKEN_S = 2e-5


class TimedFleet:
    """Workers w0, w1, … of these numbers of blocks; one works at a time, each a command in turn."""

    def __init__(self, *num_blocks: int, **changes: int) -> None:
        self.scheduler = Scheduler(Limits())
        self.now = 0.0
        self.rows: dict[str, InstantRows] = {}
        self.queues: dict[str, deque[worker_pb2.StepCommand]] = {}
        self.first_token_at: dict[int, float] = {}
        self.ended: set[int] = set()
        self.commands: list[worker_pb2.StepCommand] = []
        self._random = Random(0)
        model = types_pb2.ModelDescription(name="m", revision="r", vocab_size=VOCAB, max_model_len=32768)
        model.max_model_len = changes.pop("max_model_len", 32768)
        sizes = {"block_size": 16, "max_rows": 256, "max_step_tokens": 8192, "max_decode_steps": 4} | changes
        for number, count in enumerate(num_blocks):
            worker = worker_pb2.WorkerDescription(
                worker_epoch=number + 1, model=model, num_blocks=count, **sizes
            )
            self.rows[f"w{number}"] = InstantRows(worker)
            self.queues[f"w{number}"] = deque()
            self.scheduler.attach(f"w{number}", worker, 1, 0.0)

    def prompt(self, length: int) -> list[int]:
        """Tokens that no other prompt shares."""
        return [self._random.randrange(10, VOCAB) for _ in range(length)]

    def add(self, handle: int, prompt: list[int] | int, max_tokens: int = 4, **fields: object) -> None:
        """Submit a request, of so many tokens of its own or of these."""
        token_ids = self.prompt(prompt) if isinstance(prompt, int) else prompt
        sampling = types_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        request = scheduler_pb2.TokenRequest(
            prompt_token_ids=pack_int32(token_ids),
            sampling=sampling,
            **fields,  # type: ignore[arg-type]
        )
        self.scheduler.add(1, handle, request, 0, self.now)

    def step(self) -> bool:
        """A command of each worker; whether there was any."""
        for name, queue in self.queues.items():
            while (command := self.scheduler.schedule(name, self.now)) is not None:
                queue.append(command)
                self.commands.append(command)
        busy = [name for name, queue in self.queues.items() if queue]
        for name in busy:
            command = self.queues[name].popleft()
            result = self.rows[name].execute(command)
            prompts = int(unpack_uint32(command.prefill_num_tokens).sum())
            result.step_s = STEP_S * max(1, command.decode_steps) + prompts * TOKEN_S
            self.now += result.step_s
            self.scheduler.apply(name, result, self.now)
        for batch in self.scheduler.take_updates().values():
            for handle in unpack_uint32(batch.handles).tolist():
                self.first_token_at.setdefault(handle, self.now)
            self.ended |= {end.handle for end in batch.ends}
        self.scheduler.take_endings()
        self.scheduler.check_integrity()
        return bool(busy)

    def ttft(self, handle: int, most: int = 5000) -> float:
        """Seconds from now to the request's first token."""
        asked_at = self.now
        for _ in range(most):
            if handle in self.first_token_at or not self.step():
                break
        return self.first_token_at[handle] - asked_at
