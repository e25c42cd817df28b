"""Train, export and evaluate the bundled demo model.

    python tools/train_demo_model.py tokenizer --out out/demo
    python tools/train_demo_model.py train --out out/demo --shape demo --steps 5000
    python tools/train_demo_model.py export --out out/demo --shape demo --to models/demo

`train` goes on from its last checkpoint in `--out`, and with `--minutes` stops early and resumes when called again.
Evaluation is `benchmarks/demo_eval.py`, which `train` runs by itself after the last step unless told `--no-eval`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from demo_model.export import export
from demo_model.tokenizer import build_tokenizer
from demo_model.training import Plan, Trainer, load_model
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the command given on the command line."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer_path = options.out / "tokenizer.json"
    if options.command == "tokenizer" or not tokenizer_path.exists():
        build_tokenizer(options.seed).save(str(tokenizer_path))
    checkpoint = options.out / f"{options.shape}.pt"
    if options.command == "export":
        export(
            load_model(checkpoint, torch.device("cpu")), Tokenizer.from_file(str(tokenizer_path)), options.to
        )
    if options.command == "train":
        return train(options, tokenizer_path, checkpoint)
    return 0


def train(options: argparse.Namespace, tokenizer_path: Path, checkpoint: Path) -> int:
    """Train to the end or the time limit; at the end, export and evaluate."""
    plan = Plan(
        shape=options.shape, tokenizer=tokenizer_path, checkpoint=checkpoint, steps=options.steps, size=options.size,
        seed=options.seed, workers=options.workers, minutes=options.minutes, teacher=options.teacher,
        compile=not options.no_compile,
    )  # fmt: skip
    if not Trainer(plan).run():
        print("stopped by the clock; run the same command to go on", flush=True)
        return 0
    export(load_model(checkpoint, torch.device("cpu")), Tokenizer.from_file(str(tokenizer_path)), options.to)
    if options.no_eval:
        return 0
    evaluation = [sys.executable, str(ROOT / "benchmarks" / "demo_eval.py"), "--checkpoint", str(options.to)]
    return subprocess.run(evaluation, check=False).returncode


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["tokenizer", "train", "export"])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "out" / "demo", help="tokenizer and training checkpoints"
    )
    parser.add_argument("--to", type=Path, default=None, help="where to export; default OUT/SHAPE-export")
    parser.add_argument("--shape", choices=["demo", "draft", "tiny"], default="demo")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--size", type=int, default=65_536, help="tokens of a pack; a step takes two packs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=12, help="processes that make data")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after this long, to resume later"
    )
    parser.add_argument("--teacher", type=Path, default=None, help="training checkpoint to distil from")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-eval", action="store_true")
    options = parser.parse_args()
    options.to = options.to or options.out / f"{options.shape}-export"
    return options


if __name__ == "__main__":
    sys.exit(main())
