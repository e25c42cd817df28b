"""Random requests: lengths, prefixes that are shared, several sequences, ways to sample, and cancellations."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from demo_model.chat import render
from demo_model.evaluation import held_out
from tokenizers import Tokenizer

from quire.packing import pack_int32
from quire.v1 import types_pb2

_TASKS = ("echo", "copy", "arithmetic", "json", "tool_call", "memory", "thinking", "retrieval_512")
_FIRST_TOKEN = 16
_NUM_PREFIXES = 8
_REMEMBERED = 64


@dataclass(frozen=True)
class Ask:
    """One request."""

    prompt: list[int]
    sampling: types_pb2.SamplingParams
    n: int = 1
    cancel_after: int | None = None
    """Tokens after which it is cancelled."""

    @property
    def is_judged(self) -> bool:
        """Whether its tokens follow from the model's logits by the rules of `reference`."""
        params = self.sampling
        return not (params.top_k or params.HasField("top_p") or params.frequency_penalty)


def chat_prompts(tokenizer: Tokenizer, per_task: int, seed: int) -> list[list[int]]:
    """Prompts of the demo model's evaluation, in token ids."""
    return [
        tokenizer.encode(render(sample.prompt(), sample.tools, add_generation_prompt=True)).ids
        for task in _TASKS
        for sample in held_out(task, per_task, seed, tokenizer)
    ]


@dataclass
class RequestSource:
    """Draws requests from a seed and, for follow-ups, from what has ended."""

    prompts: Sequence[list[int]]
    vocab_size: int
    max_total: int
    """Most tokens of prompt and output."""
    rng: Random
    ended: deque[list[int]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """Prompts with their outputs, which a follow-up begins with."""
    prefixes: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        quarter = self.max_total // 4
        self.prefixes = [self._tokens(self.rng.randint(32, max(33, quarter))) for _ in range(_NUM_PREFIXES)]

    def draw(self) -> Ask:
        """The next request."""
        rng = self.rng
        output = rng.randint(1, 8) if rng.random() < 0.1 else rng.randint(16, max(17, self.max_total // 6))
        prompt = self._prompt()[: self.max_total - output]
        cancel_after = rng.randint(0, output) if rng.random() < 0.2 else None
        n = rng.randint(2, 4) if rng.random() < 0.15 else 1
        return Ask(prompt, self._sampling(output), n, cancel_after)

    def _prompt(self) -> list[int]:
        kind = self.rng.random()
        if kind < 0.4:
            return self.rng.choice(self.prompts)
        if kind < 0.65:
            return self.rng.choice(self.prefixes) + self._tokens(self.rng.randint(1, 60))
        if kind < 0.85 and self.ended:
            return self.rng.choice(self.ended) + self._tokens(self.rng.randint(1, 30))
        return self._tokens(self.rng.randint(1, self.max_total // 8))

    def _sampling(self, output: int) -> types_pb2.SamplingParams:
        rng = self.rng
        params = types_pb2.SamplingParams(
            temperature=0, seed=rng.getrandbits(64), max_tokens=output, ignore_eos=rng.random() < 0.7
        )
        kind = rng.random()
        if kind < 0.65:
            if rng.random() < 0.15:
                params.logprobs = rng.randint(0, 5)
        elif kind < 0.85:
            params.temperature = rng.choice([0.5, 0.8, 1.0, 1.5])
        else:
            params.temperature = 1.0
            params.top_p = 0.9
            params.top_k = rng.choice([0, 20])
            params.frequency_penalty = rng.choice([0.0, 0.1])
            params.stop_token_ids = pack_int32([rng.randrange(_FIRST_TOKEN, self.vocab_size)])
        return params

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(_FIRST_TOKEN, self.vocab_size) for _ in range(count)]
