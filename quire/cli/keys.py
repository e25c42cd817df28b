"""`quire keys`: who may use the server, and what each is entitled to."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from quire import keys
from quire.keys import KeyRecord, KeysFileError

commands = typer.Typer(
    no_args_is_help=True, help="API keys: each is a tenant with a share of the work and of the KV cache."
)

Name = Annotated[str, typer.Argument(help="The tenant: what its requests are counted under.")]
KeysFile = Annotated[
    Path | None, typer.Option(help="The keys file; by default the one that `quire serve` uses.")
]
Weight = Annotated[float | None, typer.Option(help="Share of the work relative to other keys', over 0.")]
KvFloor = Annotated[
    float | None, typer.Option(help="Share of the KV cache, 0 to 1, that others never take from it.")
]
KvCeiling = Annotated[float | None, typer.Option(help="Share of the KV cache, 0 to 1, that it may hold.")]
MinPriority = Annotated[
    int | None,
    typer.Option(
        help="Lowest `priority` that its requests may have; lower runs before other keys' requests."
    ),
]


@commands.command()
def create(
    name: Name,
    weight: Weight = None,
    kv_floor: KvFloor = None,
    kv_ceiling: KvCeiling = None,
    min_priority: MinPriority = None,
    keys_file: KeysFile = None,
) -> None:
    """Mint a key and print it; it is shown only this once."""
    path = keys_file or keys.default_keys_file()
    records = _load(path)
    if any(known.name == name for known in records):
        _fail(f"there is a key of {name} already: change it with `quire keys update`, or revoke it")
    key = keys.mint()
    added = _entitled(keys.record(key, name), weight, kv_floor, kv_ceiling, min_priority)
    _save(path, [*records, added])
    typer.echo(key)


@commands.command()
def update(
    name: Name,
    weight: Weight = None,
    kv_floor: KvFloor = None,
    kv_ceiling: KvCeiling = None,
    min_priority: MinPriority = None,
    keys_file: KeysFile = None,
) -> None:
    """Change what a key is entitled to; running servers see it at its next request."""
    path = keys_file or keys.default_keys_file()
    records = _load(path)
    _check_known(records, name)
    entitled = partial(
        _entitled, weight=weight, kv_floor=kv_floor, kv_ceiling=kv_ceiling, min_priority=min_priority
    )
    _save(path, [entitled(known) if known.name == name else known for known in records])


@commands.command()
def revoke(name: Name, keys_file: KeysFile = None) -> None:
    """Make a key useless, at once."""
    path = keys_file or keys.default_keys_file()
    records = _load(path)
    _check_known(records, name)
    _save(path, [known for known in records if known.name != name])


@commands.command("list")
def list_keys(keys_file: KeysFile = None) -> None:
    """Every key's tenant and what it is entitled to."""
    titles = f"{'weight':>8} {'kv floor':>9} {'kv ceiling':>11} {'min priority':>13}"
    typer.echo(f"{'name':24} {'created':16} {titles}")
    for known in _load(keys_file or keys.default_keys_file()):
        created = time.strftime("%Y-%m-%d %H:%M", time.gmtime(known.created))
        priority = "any" if known.min_priority == keys.ANY_PRIORITY else str(known.min_priority)
        shares = f"{known.weight:8g} {known.kv_floor:9g} {known.kv_ceiling:11g}"
        typer.echo(f"{known.name:24} {created:16} {shares} {priority:>13}")


def _entitled(
    record: KeyRecord,
    weight: float | None,
    kv_floor: float | None,
    kv_ceiling: float | None,
    min_priority: int | None,
) -> KeyRecord:
    """The record with what was given."""
    changed = replace(
        record,
        weight=record.weight if weight is None else weight,
        kv_floor=record.kv_floor if kv_floor is None else kv_floor,
        kv_ceiling=record.kv_ceiling if kv_ceiling is None else kv_ceiling,
        min_priority=record.min_priority if min_priority is None else min_priority,
    )
    try:
        changed.check_policy()
    except ValueError as error:
        _fail(str(error))
    return changed


def _check_known(records: tuple[KeyRecord, ...], name: str) -> None:
    if all(known.name != name for known in records):
        _fail(f"there is no key of {name}")


def _load(path: Path) -> tuple[KeyRecord, ...]:
    try:
        return keys.load(path)
    except KeysFileError as error:
        _fail(error.message)


def _save(path: Path, records: list[KeyRecord]) -> None:
    floors = sum(item.kv_floor for item in records)
    if floors > 1 + 1e-9:
        _fail(f"the KV floors of all keys together are {floors:g}: more than the whole cache")
    try:
        keys.save(path, records)
    except KeysFileError as error:
        _fail(error.message)


def _fail(message: str) -> NoReturn:
    typer.echo(f"quire: {message}", err=True)
    raise typer.Exit(1)
