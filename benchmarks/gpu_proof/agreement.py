"""One prompt computed in several ways gives one answer: at once, in chunks, on a cached prefix, beside others.

The worker's own model runner, without services, in float32 and in bfloat16 on the checkpoint's weights. What it says
of the next tokens (the likeliest 20 of each, for every prompt and way) is held against transformers in float32 on the
same weights: float32 within FLOAT32_LARGEST, bfloat16 within what `tolerance` derives from the format.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.gpu_proof.reference import GREEDY_TIE, Reference, Transcript
from benchmarks.gpu_proof.report import Report
from benchmarks.gpu_proof.requests import chat_prompts
from benchmarks.gpu_proof.row_driver import PlannedRow, RowDriver
from benchmarks.gpu_proof.services import say
from benchmarks.gpu_proof.tolerance import Tolerance, rounding_tolerance
from gpu_worker.loading import LoadedWorker, load
from gpu_worker.settings import WorkerSettings

FLOAT32_LARGEST = 1e-4
"""Of the chosen tokens' log-probabilities."""
WAYS = ("at once", "in chunks", "cached prefix", "beside others")
_STEP_TOKENS = 8192
_MOST_BESIDE = 448
"""Tokens of a chunk beside others: all of them fit into one step."""


@dataclass(frozen=True)
class AgreementOptions:
    """What to compare."""

    model: Path
    device: str
    lengths: Sequence[int]
    """Of the prompts."""
    num_new: int
    """Tokens generated after each."""
    kv_cache_memory: str
    seed: int = 1


@dataclass(frozen=True)
class WayErrors:
    """Of one way, over all prompts; float tensors [tokens] and [tokens, top]."""

    chosen: torch.Tensor
    """Absolute errors of the chosen tokens' log-probabilities."""
    top: torch.Tensor
    shortfall: torch.Tensor
    """How far the reference's logit of each token is below its largest."""


def prove_agreement(options: AgreementOptions) -> Report:
    """Compute, compare and report."""
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    prompts = _prompts(tokenizer, options)
    reference = Reference(options.model, options.device)
    tolerance = rounding_tolerance(reference, prompts[-1], "bfloat16")
    say(f"bfloat16: predicted error of a log-probability {tolerance.rms:.2g}, bound {tolerance.largest:.2g}")
    rows: list[dict[str, object]] = []
    claims: dict[str, bool] = {}
    details: dict[str, Any] = {"bfloat16_tolerance": asdict(tolerance)}
    for dtype in ("float32", "bfloat16"):
        ways = _compute(options, prompts, dtype)
        whole = ways[WAYS[0]]
        errors = {way: _errors(reference, planned) for way, planned in ways.items()}
        rows += [_row(dtype, way, ways[way], whole, errors[way]) for way in WAYS]
        claims |= _claims(dtype, ways, errors, tolerance)
    settings = {**vars(options), "model": options.model.name, "lengths": list(options.lengths)}
    return Report("agreement", settings, rows, claims, details)


def _prompts(tokenizer: Tokenizer, options: AgreementOptions) -> list[list[int]]:
    """Conversations one after another, cut to the lengths."""
    conversations = chat_prompts(tokenizer, 40, options.seed)
    Random(options.seed).shuffle(conversations)
    prompts, stream = [], [token for conversation in conversations for token in conversation]
    for length in options.lengths:
        prompts.append(stream[:length])
        stream = stream[length:] + stream[:length]
    return prompts


def _compute(
    options: AgreementOptions, prompts: Sequence[list[int]], dtype: str
) -> dict[str, list[PlannedRow]]:
    worker = _worker(options, dtype, len(prompts))
    driver, rng = RowDriver(worker), Random(options.seed)
    block_size = worker.description.block_size
    at_once = [PlannedRow(prompt, [len(prompt)], options.num_new) for prompt in prompts]
    in_chunks = [
        PlannedRow(prompt, cut(len(prompt), max(1, len(prompt) // 3), rng), options.num_new)
        for prompt in prompts
    ]
    for row in (*at_once, *in_chunks):
        driver.run([row])
    cached = []
    for row in at_once:
        held = row.blocks[: (len(row.prompt) - 1) // block_size]
        rest = len(row.prompt) - len(held) * block_size
        cached.append(PlannedRow(row.prompt, [rest], options.num_new, held))
        driver.run([cached[-1]])
    beside = [PlannedRow(prompt, cut(len(prompt), _MOST_BESIDE, rng), options.num_new) for prompt in prompts]
    driver.run(beside)
    return dict(zip(WAYS, (at_once, in_chunks, cached, beside), strict=True))


def _worker(options: AgreementOptions, dtype: str, rows: int) -> LoadedWorker:
    settings = {
        "model": str(options.model),
        "device": options.device,
        "dtype": dtype,
        "max_rows": rows,
        "max_step_tokens": _STEP_TOKENS,
        "kv_cache_memory": options.kv_cache_memory,
        "threads": 1,
    }
    return load(WorkerSettings.model_validate(settings), 1, lambda _: None)


def cut(length: int, most: int, rng: Random) -> list[int]:
    """Random pieces of at most `most`, which add up to `length`."""
    pieces: list[int] = []
    while (left := length - sum(pieces)) > 0:
        pieces.append(rng.randint(1, min(most, left)))
    return pieces


def _errors(reference: Reference, rows: Sequence[PlannedRow]) -> WayErrors:
    transcripts = [Transcript(row.prompt, row.tokens) for row in rows]
    chosen, top, shortfall = [], [], []
    for index, logits in reference.logits(transcripts):
        row, exact = rows[index], torch.log_softmax(logits, dim=-1).cpu()
        tokens = torch.tensor(row.tokens)[:, None]
        chosen.append((exact.gather(1, tokens)[:, 0] - torch.tensor(row.logprobs)).abs())
        top.append((exact.gather(1, torch.tensor(row.top_ids)) - torch.tensor(row.top_logprobs)).abs())
        shortfall.append(exact.amax(dim=-1) - exact.gather(1, tokens)[:, 0])
    return WayErrors(torch.cat(chosen), torch.cat(top), torch.cat(shortfall))


def _row(
    dtype: str, way: str, rows: Sequence[PlannedRow], whole: Sequence[PlannedRow], errors: WayErrors
) -> dict[str, object]:
    return {
        "dtype": dtype,
        "computed": way,
        "tokens": sum(len(row.tokens) for row in rows),
        "rows as at once": sum(row.tokens == other.tokens for row, other in zip(rows, whole, strict=True)),
        "of": len(rows),
        "largest error": float(errors.chosen.max()),
        "largest of top 20": float(errors.top.max()),
        "99 % of them below": float(errors.top.flatten().quantile(0.99)),
        "rms of top 20": float(errors.top.square().mean().sqrt()),
        "not the likeliest": int((errors.shortfall > 0).sum()),
        "largest shortfall": float(errors.shortfall.max()),
    }


def _claims(
    dtype: str, ways: dict[str, list[PlannedRow]], errors: dict[str, WayErrors], tolerance: Tolerance
) -> dict[str, bool]:
    shortfall = max(float(found.shortfall.max()) for found in errors.values())
    if dtype == "float32":
        tokens = [[row.tokens for row in rows] for rows in ways.values()]
        return {
            "float32: every way gives the same tokens": all(found == tokens[0] for found in tokens),
            "float32: every token is the reference's likeliest": shortfall <= GREEDY_TIE,
            f"float32: log-probabilities within {FLOAT32_LARGEST:g}": all(
                float(found.chosen.max()) <= FLOAT32_LARGEST for found in errors.values()
            ),
        }
    return {
        f"{dtype}: every token is the likeliest within the tolerance": shortfall <= tolerance.largest,
        f"{dtype}: log-probabilities of all chosen tokens within the tolerance": all(
            float(found.chosen.max()) <= tolerance.largest for found in errors.values()
        ),
        f"{dtype}: 99 % of those of the likeliest 20 within the tolerance": all(
            float((found.top > tolerance.largest).float().mean()) <= 0.01 for found in errors.values()
        ),
        f"{dtype}: the mean square of their errors within twice the predicted": all(
            float(found.top.square().mean()) <= 2 * tolerance.rms**2 for found in errors.values()
        ),
    }
