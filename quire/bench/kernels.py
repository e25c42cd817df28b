"""`quire bench kernels`: each kernel of a decoder alone, at the sizes of some models."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from quire.bench.engine import model_directory, model_name
from quire.bench.floors import Rooflines
from quire.bench.report import Report
from quire.errors import Internal
from quire.launcher import services_directory

_LAST_WORDS_CHARS = 1000


@dataclass(frozen=True)
class KernelOptions:
    """What to measure."""

    models: Sequence[str]
    """Checkpoints, hub ids or shapes; weights are not looked at."""
    device: str
    batches: Sequence[int]
    contexts: Sequence[int]
    """Tokens of each row that decodes."""
    prompt_len: int
    block_size: int


async def measure_kernels(options: KernelOptions, *, say: Callable[[str], None]) -> Report:
    """Run `python -m kernels.bench`, for this package knows no torch. Raises Internal with what it said."""
    with contextlib.ExitStack() as stack:
        configs = [
            f"--config={model_name(model)}={directory / 'config.json'}"
            for model in options.models
            for directory, _ in [stack.enter_context(model_directory(model, weights=False))]
        ]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kernels.bench", *configs, "--device", options.device),
            *("--batch", *map(str, options.batches), "--context", *map(str, options.contexts)),
            *("--prompt-len", str(options.prompt_len), "--block-size", str(options.block_size)),
            cwd=services_directory(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, words = await asyncio.gather(_read_all(process.stdout), _pass_on(process.stderr, say))
        if await process.wait() != 0:
            raise Internal(f"the kernels could not be measured: {words}")
    document = json.loads(out)
    rates = Rooflines(**document["rooflines"])
    return Report(
        kind="kernels",
        model={"name": "+".join(map(model_name, options.models)), "device": rates.device},
        settings=asdict(options),
        results=document["results"],
        rooflines=rates,
    )


async def _read_all(stream: asyncio.StreamReader | None) -> bytes:
    assert stream is not None
    return await stream.read()


async def _pass_on(stream: asyncio.StreamReader | None, say: Callable[[str], None]) -> str:
    """Say each line as it comes; returns the last ones."""
    assert stream is not None
    words = ""
    async for line in stream:
        text = line.decode(errors="replace").rstrip()
        say(text)
        words = f"{words}\n{text}"[-_LAST_WORDS_CHARS:]
    return words


def kernels_table(report: Report) -> Iterator[dict[str, object]]:
    """What a person wants to see of it."""
    for result in report.results:
        is_memory = result.get("bound") == "memory"
        rate = result.get("bytes_per_s" if is_memory else "flops_per_s")
        yield {
            "model": result["model"],
            "op": result["op"],
            "rows": result["rows"],
            "detail": result["detail"],
            "µs": result.get("us"),
            "floor µs": result.get("floor_us"),
            "of floor": f"{result['share']:.1%}" if "share" in result else result["error"],
            "MB": result["bytes"] / 1e6,
            "GFLOP": result["flops"] / 1e9,
            "reached": "-" if rate is None else f"{rate / 1e12:.3g} {'TB/s' if is_memory else 'TFLOP/s'}",
        }
