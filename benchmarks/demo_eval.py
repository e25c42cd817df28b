"""Score the demo model on held-out samples, through transformers or through an OpenAI-compatible server.

    python benchmarks/demo_eval.py --checkpoint models/demo
    python benchmarks/demo_eval.py --url http://localhost:8000 --concurrency 16 --short

Both ask the same seeded samples, greedily, and judge the answers by the same checkers. Exit status 1 means that a
task with a target fell below it; `--floor 0.9` sets one target for all tasks instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from demo_model.evaluation import SHORT_FORM, TASKS, Engine, TaskScore, answer_room, score  # noqa: E402
from demo_model.sample import Answer, Message, Sample, answer_from_message  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402


class HttpEngine:
    """Greedy chat completions from an OpenAI-compatible server."""

    def __init__(
        self, url: str, key: str, model: str | None, concurrency: int, timeout: float, tokenizer: Tokenizer
    ) -> None:
        base = url.rstrip("/")
        self.base = base if base.endswith("/v1") else f"{base}/v1"
        self.key, self.concurrency, self.timeout, self.tokenizer = key, concurrency, timeout, tokenizer
        self.model = model or self._first_model()
        self.errors: list[str] = []

    def _first_model(self) -> str:
        """The first model that the server lists; one that is still starting up lists none."""
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            if models := self._request("/models", None)["data"]:
                return str(models[0]["id"])
            time.sleep(0.5)
        raise SystemExit(f"{self.base} lists no model")

    def answers(self, samples: list[Sample]) -> list[Answer]:
        """The server's answer to each sample, in order, up to `concurrency` at a time."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(self._answer, samples))

    def _answer(self, sample: Sample) -> Answer:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [as_openai(message) for message in sample.prompt()],
            "temperature": 0,
            "max_tokens": answer_room(sample, self.tokenizer),
        }
        if sample.tools:
            body["tools"] = sample.tools
        try:
            message = self._request("/chat/completions", body)["choices"][0]["message"]
        except (urllib.error.URLError, OSError, ValueError, KeyError) as error:
            detail = (
                error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
            )
            self.errors.append(f"{error} {detail[:200]}")
            return Answer(content=f"error: {error}")
        if "reasoning" in message:
            message.setdefault("reasoning_content", message["reasoning"])
        return answer_from_message(message)

    def _request(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(self.base + path, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return json.load(response)


def as_openai(message: Message) -> Message:
    """A message as OpenAI clients send it back: the arguments of a tool call are a JSON string."""
    if not message.get("tool_calls"):
        return {key: value for key, value in message.items() if key != "reasoning_content"}
    calls = []
    for call in message["tool_calls"]:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="directory to load with transformers")
    source.add_argument("--url", help="address of a server, with or without /v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", help="model name to ask the server for; default: the first one it lists")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight at the server")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds to wait for one answer")
    parser.add_argument(
        "--tokenizer", type=Path, default=ROOT / "models" / "demo", help="directory that sizes prompts"
    )
    parser.add_argument("--samples", type=int, help="samples of each task; default 200, in the short form 10")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, help="default: all")
    parser.add_argument("--short", action="store_true", help="fewer tasks and samples, for CI")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--floor", type=float, help="one target for every task, in place of the published ones"
    )
    parser.add_argument("--device", default=None, help="for --checkpoint: cpu or cuda")
    parser.add_argument("--dtype", default="bfloat16", help="for --checkpoint: bfloat16 or float32")
    parser.add_argument(
        "--draft", type=Path, help="for --checkpoint: a draft model whose agreement to report"
    )
    parser.add_argument("--json", type=Path, help="write scores and some misses to this file")
    return parser.parse_args(arguments)


def show(result: TaskScore) -> None:
    """Print one line of a task's score."""
    target = f"target {result.target:.0%}" if result.target else ""
    print(
        f"{result.task:16} {result.accuracy:7.2%}  {result.right:4}/{result.count:<4} "
        f"{result.seconds:6.1f} s  {target}",
        flush=True,
    )


def build_engine(options: argparse.Namespace, tokenizer: Tokenizer) -> Engine:
    """The engine that the options ask for."""
    if options.url:
        return HttpEngine(
            options.url, options.api_key, options.model, options.concurrency, options.timeout, tokenizer
        )
    import torch
    from demo_model.engine import TransformersEngine

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TransformersEngine(options.checkpoint, device, options.dtype, options.draft)


def finish(options: argparse.Namespace, engine: Engine, scores: Iterable[TaskScore]) -> int:
    """Write the JSON file, report agreement, errors and missed targets; the exit status."""
    summary: dict[str, Any] = {"seed": options.seed, "scores": [result.as_dict() for result in scores]}
    if compared := getattr(engine, "compared", 0):
        summary["draft_agreement"] = engine.agreed / compared  # type: ignore[attr-defined]
        print(f"draft agrees on {summary['draft_agreement']:.2%} of {compared} tokens")
    if errors := getattr(engine, "errors", []):
        summary["errors"] = errors[:10]
        print(f"{len(errors)} requests failed; the first: {errors[0]}")
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    missed = [
        result.task for result in scores if result.target is not None and result.accuracy < result.target
    ]
    print(f"below target: {', '.join(missed)}" if missed else "every target met")
    return 1 if missed else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the evaluation; 0 when every target is met."""
    options = parse(arguments)
    directory = options.checkpoint or options.tokenizer
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tasks = options.tasks or (SHORT_FORM if options.short else TASKS)
    engine = build_engine(options, tokenizer)

    def report(result: TaskScore) -> None:
        if options.floor is not None:
            result.target = options.floor
        show(result)

    count = options.samples or (10 if options.short else 200)
    scores = score(engine, tasks, count, options.seed, tokenizer, report)
    return finish(options, engine, scores)


if __name__ == "__main__":
    sys.exit(main())
