"""`quire serve`: every service on this machine, one command."""

import asyncio
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quire import keys
from quire.cli.authority import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE
from quire.cli.certs import OPERATOR
from quire.cli.readiness import Readiness
from quire.errors import QuireError
from quire.launcher import Launcher, LaunchError, ServiceCommand, free_ports
from quire.local import demo_model
from quire.model_files import resolve_model
from quire.rpc import security
from quire.rpc.identity import read_identity

# The gateway ends the streams it has; the launcher's limit for everything is a little more.
_GRACE_S = 2.0


class Device(StrEnum):
    """Where the model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """What the weights are converted to."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class LoadFormat(StrEnum):
    """Where the weights come from."""

    AUTO = "auto"
    DUMMY = "dummy"


class LogLevel(StrEnum):
    """Least important lines to log."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class ServeOptions:
    """What `quire serve` was told."""

    model: str
    served_model_name: str
    host: str
    port: int
    api_key: str
    device: str
    dtype: str
    max_model_len: int
    kv_cache_memory: str
    max_rows: int
    gpu_memory_utilization: float
    load_format: str
    gateways: int
    sockets: Path | None
    certs: Path | None
    otlp_endpoint: str
    log_level: str


MaxModelLen = Annotated[
    int, typer.Option(min=0, help="Most tokens of prompt and output; 0: what the model allows.")
]
KvCacheMemory = Annotated[
    str, typer.Option(help="Size of the KV cache, for example 2GiB; by default chosen by the worker.")
]
MaxRows = Annotated[
    int, typer.Option(min=0, help="Most sequences that run at once; 0: chosen by the worker.")
]
GpuMemoryUtilization = Annotated[
    float, typer.Option(min=0.1, max=1.0, help="Share of the GPU's memory to take.")
]
Gateways = Annotated[int, typer.Option(min=1, max=64, help="Gateway processes, which share the port.")]


def serve(
    model: Annotated[
        str, typer.Argument(help="Checkpoint directory or hub id; the bundled demo model if not given.")
    ] = "",
    host: Annotated[str, typer.Option(help="Address to serve HTTP on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve HTTP on.")] = 8000,
    api_key: Annotated[
        str, typer.Option(envvar="QUIRE_API_KEY", help="Key that clients must send; minted at first start.")
    ] = "",
    served_model_name: Annotated[
        str, typer.Option(help="Name that clients ask for; by default the model as given.")
    ] = "",
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.AUTO,
    dtype: Annotated[Dtype, typer.Option(help="Type of the weights and the KV cache.")] = Dtype.AUTO,
    max_model_len: MaxModelLen = 0,
    kv_cache_memory: KvCacheMemory = "",
    max_rows: MaxRows = 0,
    gpu_memory_utilization: GpuMemoryUtilization = 0.9,
    gateways: Gateways = 1,
    load_format: Annotated[
        LoadFormat, typer.Option(help="auto: safetensors; dummy: random weights of the config.")
    ] = LoadFormat.AUTO,
    sockets: Annotated[
        Path | None,
        typer.Option(help="Directory for the services' Unix sockets; by default a temporary one."),
    ] = None,
    certs: Annotated[
        Path | None, typer.Option(help="Folder that `quire certs` made: mutual TLS between the services.")
    ] = None,
    otlp_endpoint: Annotated[
        str, typer.Option(envvar="QUIRE_OTLP_ENDPOINT", help="http://host:4317 of a trace collector.")
    ] = "",
    log_level: Annotated[LogLevel, typer.Option(help="Least important lines to log.")] = LogLevel.WARNING,
) -> None:
    """Start every service on this machine and print how to use it."""
    options = ServeOptions(
        model=model or str(demo_model()),
        served_model_name=served_model_name or (model.rstrip("/").split("/")[-1] if model else "demo"),
        host=host,
        port=port,
        api_key=api_key,
        device=device.value,
        dtype=dtype.value,
        max_model_len=max_model_len,
        kv_cache_memory=kv_cache_memory,
        max_rows=max_rows,
        gpu_memory_utilization=gpu_memory_utilization,
        load_format=load_format.value,
        gateways=gateways,
        sockets=sockets,
        certs=certs,
        otlp_endpoint=otlp_endpoint,
        log_level=log_level.value,
    )
    try:
        asyncio.run(_serve(options))
    except (LaunchError, QuireError) as error:
        typer.echo(f"quire: {error}", err=True)
        raise typer.Exit(1) from None


async def _serve(options: ServeOptions) -> None:
    started = time.monotonic()
    _check_port(options.host, options.port)
    if options.certs is not None:
        security.put_in_force(read_identity(OPERATOR, *_identity_files(options.certs / OPERATOR)))
    # Downloading here, once, shows the hub's own progress and fails before anything has started.
    await asyncio.to_thread(resolve_model, options.model, weights=options.load_format == "auto")
    keys_file = keys.default_keys_file()
    minted = "" if options.api_key else keys.mint_first(keys_file)
    with _socket_directory(options.sockets) as sockets:
        readiness = Readiness(f"unix:{sockets}/worker", _say_progress())
        launcher = Launcher(_commands(options, sockets, keys_file), _say)
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        _say(f"Starting Quire with {options.model}")
        try:
            await launcher.run(
                lambda: readiness.wait(options.host, options.port, options.gateways),
                lambda: _say(_welcome(options, sockets, minted, time.monotonic() - started)),
            )
        except asyncio.CancelledError:
            _say("Stopped.")


@contextmanager
def _socket_directory(chosen: Path | None) -> Iterator[str]:
    if chosen is None:
        with tempfile.TemporaryDirectory(prefix="quire-") as directory:
            yield directory
        return
    # Nothing but this directory's permissions keeps other users from the services inside.
    chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
    yield str(chosen.resolve())


def _commands(options: ServeOptions, sockets: str, keys_file: Path) -> list[ServiceCommand]:
    shared = ["--log-level", options.log_level]
    if options.otlp_endpoint:
        shared += ["--otlp-endpoint", options.otlp_endpoint]
    free = _free_addresses(options.port)
    metrics = {name: next(free) for name in ("tokenizer_svc", "scheduler_svc", "gpu_worker")}
    worker = [
        *("--listen", f"unix:{sockets}/worker", "--model", options.model, "--device", options.device),
        *("--dtype", options.dtype, "--load-format", options.load_format),
        *("--served-model-name", options.served_model_name, "--metrics-listen", metrics["gpu_worker"]),
        *("--gpu-memory-utilization", str(options.gpu_memory_utilization)),
    ]
    if options.max_model_len:
        worker += ["--max-model-len", str(options.max_model_len)]
    if options.kv_cache_memory:
        worker += ["--kv-cache-memory", options.kv_cache_memory]
    if options.max_rows:
        worker += ["--max-rows", str(options.max_rows)]
    scheduler = [
        *("--listen", f"unix:{sockets}/scheduler", "--workers", f"unix:{sockets}/worker"),
        *("--metrics-listen", metrics["scheduler_svc"], "--grace-s", "0.5"),
    ]
    tokenizer = [
        *("--listen", f"unix:{sockets}/tokenizer", "--schedulers", f"unix:{sockets}/scheduler"),
        *("--model", options.model, "--metrics-listen", metrics["tokenizer_svc"], "--grace-s", "0.5"),
    ]
    gateway = [
        *("--listen", f"{options.host}:{options.port}", "--tokenizers", f"unix:{sockets}/tokenizer"),
        *("--keys-file", str(keys_file), "--grace-s", str(_GRACE_S), "--leave-delay-s", "0"),
        *("--metrics-upstreams", ",".join(f"http://{address}/metrics" for address in metrics.values())),
    ]
    return [
        *_gateways(options, [*gateway, *shared, *_tls(options.certs, "gateway")], free),
        ServiceCommand("tokenizer_svc", [*tokenizer, *shared, *_tls(options.certs, "tokenizer_svc")]),
        ServiceCommand("scheduler_svc", [*scheduler, *shared, *_tls(options.certs, "scheduler_svc")]),
        ServiceCommand(
            "gpu_worker", [*worker, *shared, "--grace-s", "0.5", *_tls(options.certs, "gpu_worker")]
        ),
    ]


def _tls(certs: Path | None, service: str) -> list[str]:
    """A service's flags for its part of what `quire certs` made."""
    if certs is None:
        return []
    cert, key, ca = map(str, _identity_files(certs / service))
    return ["--tls-cert", cert, "--tls-key", key, "--tls-ca", ca]


def _identity_files(folder: Path) -> tuple[Path, Path, Path]:
    return folder / CERTIFICATE_FILE, folder / KEY_FILE, folder / AUTHORITY_FILE


def _gateways(options: ServeOptions, flags: list[str], free: Iterator[str]) -> list[ServiceCommand]:
    """One, or several that share the port; whichever is asked for metrics shows those of all."""
    secrets = {"QUIRE_API_KEY": options.api_key} if options.api_key else {}
    if options.gateways == 1:
        return [ServiceCommand("gateway", flags, secrets)]
    metrics = [next(free) for _ in range(options.gateways)]
    commands = []
    for number, address in enumerate(metrics, start=1):
        peers = ",".join(f"http://{peer}/metrics" for peer in metrics if peer != address)
        own = ["--shared-listen", "--metrics-listen", address, "--metrics-peers", peers]
        commands.append(ServiceCommand("gateway", [*flags, *own], secrets, number=number))
    return commands


def _check_port(host: str, port: int) -> None:
    """Find a taken port before any weights are read."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _free_addresses(http_port: int) -> Iterator[str]:
    """Of this machine, for metrics: none twice, nor with the port of HTTP."""
    return (f"127.0.0.1:{port}" for port in free_ports([http_port]))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say_progress() -> Callable[[str], None]:
    """A line that rewrites itself on a terminal; elsewhere one line per change."""
    on_terminal = sys.stderr.isatty()
    last = ""

    def say(line: str) -> None:
        nonlocal last
        if line != last:
            print(
                f"\r\033[K{line}" if on_terminal else line, file=sys.stderr, end="" if on_terminal else "\n"
            )
            sys.stderr.flush()
        last = line

    return say


def _welcome(options: ServeOptions, sockets: str, minted: str, seconds: float) -> str:
    host = "localhost" if options.host in ("0.0.0.0", "::") else options.host
    url = f"http://{host}:{options.port}"
    lines = [f"\nQuire serves {options.served_model_name} on {url} (ready after {seconds:.1f} s)"]
    # A key that was given, or kept as a hash from an earlier start, is not printed: the line to paste asks for it.
    key, ask = "$KEY", "printf 'API key: '; read -rs KEY; "
    if minted:
        lines.append(f"API key, shown only this once: {minted}")
        key, ask = minted, ""
    lines += [
        "Try it:" if minted else "Try it (`quire keys create NAME` makes another API key):",
        f'  {ask}curl -N {url}/v1/chat/completions -H "Authorization: Bearer {key}" \\',
        "    -H 'Content-Type: application/json' \\",
        f"""    -d '{{"model": "{options.served_model_name}", "stream": true, \
"messages": [{{"role": "user", "content": "What is Quire?"}}]}}'""",
        f"gRPC: unix:{sockets}/tokenizer and unix:{sockets}/scheduler. Ctrl-C stops it.",
    ]
    return "\n".join(lines)
