"""Shows on a GPU what the project promises of it; each part runs alone, and in small (`--tiny`) on a CPU too.

    python -m benchmarks.gpu_proof timeline --model llama-8b --out DIRECTORY
    python -m benchmarks.gpu_proof traffic --seconds 300 --out DIRECTORY
    python -m benchmarks.gpu_proof agreement --out DIRECTORY
    python -m benchmarks.gpu_proof demo --out DIRECTORY

Each prints a table and what holds of it, and writes `proof-<part>.json`; exit status 1 where something does not hold.
The timeline needs the GPU for itself, the others may run side by side.
"""

import argparse
import sys
from pathlib import Path

import uvloop

from benchmarks.gpu_proof import ROOT
from benchmarks.gpu_proof.report import Report

_DEMO = ROOT / "models" / "demo"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_proof",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, required=True, help="directory of reports and pictures")
    shared.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    shared.add_argument("--tiny", action="store_true", help="as little as shows that it works")
    parts = parser.add_subparsers(dest="part", required=True)
    traffic = parts.add_parser("traffic", parents=[shared], help="random requests against transformers")
    traffic.add_argument("--seconds", type=float, default=300.0)
    timeline = parts.add_parser("timeline", parents=[shared], help="the GPU's work while 256 rows decode")
    timeline.add_argument("--model", default="llama-8b", help="a shape of `quire bench`, or a checkpoint")
    timeline.add_argument("--kv-cache-dtype", default="auto", choices=["auto", "fp8"])
    demo = parts.add_parser("demo", parents=[shared], help="the demo model's scores, by format of its KV")
    demo.add_argument("--samples", type=int, default=10, help="of each task")
    demo.add_argument("--float32-only", action="store_true", help="as for the CPU's own scores")
    parts.add_parser("agreement", parents=[shared], help="one prompt computed in several ways")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> Report:
    """Run the part that was asked for."""
    return _PARTS[options.part](options)


def _traffic(options: argparse.Namespace) -> Report:
    from benchmarks.gpu_proof.traffic import TrafficOptions, prove_traffic

    tiny: bool = options.tiny
    return uvloop.run(
        prove_traffic(
            TrafficOptions(
                model=_DEMO,
                device=options.device,
                seconds=options.seconds,
                clients=24 if tiny else 96,
                rows=16 if tiny else 64,
                kv_cache_memory="10MiB" if tiny else "160MiB",
                max_model_len=512 if tiny else 2048,
                sample_every_s=0.25 if tiny else 2.0,
            )
        )
    )


def _agreement(options: argparse.Namespace) -> Report:
    from benchmarks.gpu_proof.agreement import AgreementOptions, prove_agreement

    lengths = (1, 2, 15, 16, 17, 33, 100, 255, 256, 257, 511, 700, 1000, 1500, 2049, 3000)
    tiny: bool = options.tiny
    return prove_agreement(
        AgreementOptions(
            model=_DEMO,
            device=options.device,
            lengths=(1, 17, 100) if tiny else lengths,
            num_new=4 if tiny else 16,
            kv_cache_memory="256MiB" if tiny else "2GiB",
        )
    )


def _timeline(options: argparse.Namespace) -> Report:
    from benchmarks.gpu_proof.timeline import TimelineOptions, prove_timeline

    tiny: bool = options.tiny
    tiny_worker = {"max_rows": 4, "kv_cache_memory": "64MiB", "threads": 1, "profile_s": 0.05}
    return uvloop.run(
        prove_timeline(
            TimelineOptions(
                model=str(_DEMO) if tiny else options.model,
                device=options.device,
                batch=4 if tiny else 256,
                prompt_len=8 if tiny else 600,
                output_len=2000 if tiny else 3400,
                seconds=0.5 if tiny else 3.0,
                worker={
                    "kv_cache_dtype": options.kv_cache_dtype,
                    **(tiny_worker if tiny else {"profile_s": 0.4}),
                },
                out=options.out,
            )
        )
    )


def _demo(options: argparse.Namespace) -> Report:
    from demo_model.evaluation import TASKS

    from benchmarks.gpu_proof.demo import FORMATS, DemoOptions, prove_demo

    tiny: bool = options.tiny
    return prove_demo(
        DemoOptions(
            model=_DEMO,
            device=options.device,
            tasks=("arithmetic", "json") if tiny else TASKS,
            samples=2 if tiny else options.samples,
            uncertain=2 if tiny else 64,
            formats=FORMATS[:1] if options.float32_only else FORMATS,
            worker={"max_rows": 8, "threads": 1} if tiny else {"max_rows": 64, "kv_cache_memory": "4GiB"},
        )
    )


_PARTS = {"timeline": _timeline, "demo": _demo, "traffic": _traffic, "agreement": _agreement}


def main(arguments: list[str] | None = None) -> int:
    """Run one part; 0 where all that it claims holds."""
    options = parse(arguments)
    report = measure(options)
    report.save(options.out)
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
