"""The demo model's evaluation through the whole offline path, with keys and values kept in several formats.

Each question is answered greedily; the answers are scored and compared with the CPU's (float32), token by token. The
model is nearly certain of what it was trained for, so a second set shows what formats cost where it is not: prompts of
random tokens, continued at temperature 1, whose log-probabilities are held against transformers in float32 on the same
tokens.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from demo_model.chat import ASSISTANT_OPENING, render
from demo_model.evaluation import answer_room, held_out
from demo_model.sample import Answer, Sample, answer_from_message, is_right
from tokenizers import Tokenizer

from benchmarks.gpu_proof import ROOT
from benchmarks.gpu_proof.divergence import Divergence, divergence
from benchmarks.gpu_proof.reference import Reference
from benchmarks.gpu_proof.report import Report
from benchmarks.gpu_proof.services import say
from quire import LLM, RequestOutput, SamplingParams

EXPECTED = ROOT / "benchmarks" / "results" / "demo_cpu.json"
"""The report of the CPU, where there is one."""
_NUM_TOP = 20
_FIRST_TOKEN = 16


@dataclass(frozen=True)
class Format:
    """Of weights, and of keys and values, for which `auto` is that of the weights."""

    dtype: str
    kv: str

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.dtype}, KV {self.dtype if self.kv == 'auto' else self.kv}"


FLOAT32 = Format("float32", "auto")
FORMATS = (FLOAT32, Format("bfloat16", "auto"), Format("bfloat16", "fp8"))


@dataclass(frozen=True)
class DemoOptions:
    """What to ask, and of whom."""

    model: Path
    device: str
    tasks: Sequence[str]
    samples: int
    """Of each task."""
    uncertain: int
    """Prompts of random tokens."""
    formats: Sequence[Format]
    worker: Mapping[str, object]
    seed: int = 1


@dataclass(frozen=True)
class Answers:
    """Of one format."""

    right: dict[str, int]
    """By task."""
    digests: dict[str, list[str]]
    """Of each answer's tokens, by task: what equality of tokens is told by."""
    uncertain: Divergence


def prove_demo(options: DemoOptions) -> Report:
    """Ask, score, compare and report."""
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    samples = [
        sample
        for task in options.tasks
        for sample in held_out(task, options.samples, options.seed, tokenizer)
    ]
    tasks = [task for task in options.tasks for _ in range(options.samples)]
    reference = Reference(options.model, options.device)
    found = {}
    for kept in options.formats:
        say(f"{kept.name}: {len(samples)} questions")
        found[kept.name] = _answers(options, kept, tokenizer, tasks, samples, reference)
    return _report(options, found, _expected(options))


def _answers(
    options: DemoOptions,
    kept: Format,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    samples: Sequence[Sample],
    reference: Reference,
) -> Answers:
    prompts = [
        tokenizer.encode(render(sample.prompt(), sample.tools, add_generation_prompt=True)).ids
        for sample in samples
    ]
    rooms = [answer_room(sample, tokenizer) for sample in samples]
    worker = {"device": options.device, "dtype": kept.dtype, "kv_cache_dtype": kept.kv, **options.worker}
    with LLM(str(options.model), progress=False, scheduler=None, **worker) as llm:
        certain = llm.generate(prompts, [_greedy(room) for room in rooms])
        uncertain = llm.generate(*_uncertain(options, tokenizer.get_vocab_size()))
    parser = AnswerParser(options.model)
    right = dict.fromkeys(options.tasks, 0)
    digests: dict[str, list[str]] = {task: [] for task in options.tasks}
    for task, sample, output in zip(tasks, samples, certain, strict=True):
        right[task] += is_right(sample.check, parser.answer(output.text))
        digests[task].append(_digest(output))
    return Answers(right, digests, divergence(reference, uncertain))


def _greedy(room: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=room, skip_special_tokens=False)


def _uncertain(options: DemoOptions, vocab_size: int) -> tuple[list[list[int]], list[SamplingParams]]:
    rng = Random(options.seed)
    prompts = [
        [rng.randrange(_FIRST_TOKEN, vocab_size) for _ in range(rng.randint(16, 1000))]
        for _ in range(options.uncertain)
    ]
    params = [
        SamplingParams(temperature=1, seed=number, max_tokens=48, ignore_eos=True, logprobs=_NUM_TOP)
        for number in range(options.uncertain)
    ]
    return prompts, params


def _digest(output: RequestOutput) -> str:
    return hashlib.sha256(repr(output.outputs[0].token_ids).encode()).hexdigest()[:12]


class AnswerParser:
    """The inverse of the checkpoint's chat template, as transformers reads it."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)

    def answer(self, text: str) -> Answer:
        """What a generated text says; all of it where it has not the template's form."""
        text = text.split(self._tokenizer.eos_token)[0]
        try:
            return answer_from_message(self._tokenizer.parse_response(text, prefix=ASSISTANT_OPENING))
        except (ValueError, KeyError, TypeError):
            return Answer(content=text)


def _settings(options: DemoOptions) -> dict[str, Any]:
    return {
        "tasks": list(options.tasks),
        "samples": options.samples,
        "uncertain": options.uncertain,
        "seed": options.seed,
    }


def _expected(options: DemoOptions) -> Answers | None:
    """The CPU's answers to the same questions, if they are known."""
    document = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else None
    if document is None or document["settings"] != _settings(options):
        return None
    answers = document["answers"][FLOAT32.name]
    return Answers(answers["right"], answers["digests"], Divergence(**answers["uncertain"]))


def _report(options: DemoOptions, found: Mapping[str, Answers], expected: Answers | None) -> Report:
    exact = expected or next(iter(found.values()))
    rows: list[dict[str, object]] = []
    for name, answers in found.items():
        worse = [task for task, right in answers.right.items() if right < exact.right[task]]
        rows.append(
            {
                "format": name,
                "right": sum(answers.right.values()),
                "of": len(options.tasks) * options.samples,
                "tasks below the CPU's": len(worse),
                "answers token by token the CPU's": _num_equal(answers, exact),
                "uncertain tokens": answers.uncertain.tokens,
                "mean error": answers.uncertain.mean,
                "largest": answers.uncertain.largest,
                "KL": answers.uncertain.kl,
            }
        )
    total = len(options.tasks) * options.samples
    ours = found.get(FLOAT32.name)
    claims = {}
    if ours is not None:
        claims["float32: every task's score is the CPU's"] = ours.right == exact.right
        claims["float32: every answer is the CPU's, token by token"] = _num_equal(ours, exact) == total
        claims["float32: log-probabilities within 1e-3"] = ours.uncertain.largest <= 1e-3
    for name, answers in found.items():
        lost = sum(exact.right.values()) - sum(answers.right.values())
        claims[f"{name}: at most 1 % of the answers lost"] = lost <= 0.01 * total
    details = {
        "device": options.device,
        "compared_with": "itself" if expected is None else "the CPU in float32",
        "answers": {name: asdict(answers) for name, answers in found.items()},
    }
    return Report("demo", _settings(options), rows, claims, details)


def _num_equal(answers: Answers, exact: Answers) -> int:
    return sum(
        ours == theirs
        for task, digests in answers.digests.items()
        for ours, theirs in zip(digests, exact.digests[task], strict=True)
    )
