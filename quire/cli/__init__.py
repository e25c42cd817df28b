"""The `quire` command."""

from typing import Annotated

import typer

import quire
from quire.cli.bench import bench
from quire.cli.certs import certs
from quire.cli.keys import commands as keys_commands
from quire.cli.serve import serve

app = typer.Typer(name="quire", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(serve)
app.command()(certs)
app.add_typer(bench, name="bench")
app.add_typer(keys_commands, name="keys")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quire {quire.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Quire serves large language models behind an OpenAI-compatible API."""


def main() -> None:
    """Run the command line."""
    app()
