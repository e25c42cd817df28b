"""Options that several `quire bench` commands have."""

from pathlib import Path
from typing import Annotated

import typer

from quire.bench.shapes import shapes

Model = Annotated[
    str,
    typer.Option(
        help=f"Checkpoint directory, hub id, or a shape with random weights ({', '.join(shapes())}); "
        "by default the demo model."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: greedy.")]
Worker = Annotated[
    list[str], typer.Option(help="Setting of the worker, as name=value; may be repeated (docs/settings.md).")
]
Scheduler = Annotated[
    list[str], typer.Option(help="Setting of the scheduler, as name=value; may be repeated.")
]
Output = Annotated[Path, typer.Option(help="Directory for the JSON report and the plot.")]
Repeats = Annotated[int, typer.Option(min=1, help="Measured runs of each, after one to warm up.")]
