"""Asks one service whether it serves, for the health checks of containers: `python -m quire.health ADDRESS`.

ADDRESS is host:port or unix:/path of a gRPC service, or a URL of HTTP (200 is healthy). A gRPC service is asked for the
health of its process, "": whether it can do its own part, whatever its peers do (docs/grpc.md).
A gRPC service that wants certificates is shown the one that QUIRE_TLS_CERT, QUIRE_TLS_KEY and QUIRE_TLS_CA name: beside
a service, its own. Exit status 0: it serves; 1: it does not, and one line says why. It is no part of the `quire`
command because the imports of that cost three times as much, every few seconds in every container.
"""

import asyncio
import os
import sys
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quire.rpc.channel import open_channel
from quire.rpc.security import Security

_LIMIT_S = 3.0


async def grpc_problem(address: str) -> str:
    """Why the service at `address` does not serve; "": it does."""
    try:
        identity = _identity()
    except OSError as error:
        return str(error)
    async with open_channel(address, identity) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_LIMIT_S)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details() or ''}"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return status


def _identity() -> Security:
    """From the environment alone: settings would take as long to import as everything else does."""
    names = ("QUIRE_TLS_CERT", "QUIRE_TLS_KEY", "QUIRE_TLS_CA")
    files = [os.environ[name] for name in names if os.environ.get(name)]
    if len(files) < len(names):
        return Security()
    certificate, private_key, authorities = (Path(file).read_bytes() for file in files)
    return Security(certificate, private_key, authorities)


def http_problem(url: str) -> str:
    """Why GET `url` is not answered with 200; "": it is."""
    try:
        with urllib.request.urlopen(url, timeout=_LIMIT_S) as response:
            return "" if response.status == HTTPStatus.OK else f"HTTP {response.status}"
    except urllib.error.HTTPError as error:
        with error:
            return f"HTTP {error.code}: {error.read(1000).decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return str(error)


def main() -> int:
    """The exit status."""
    if len(sys.argv) != 2:
        print("usage: python -m quire.health ADDRESS", file=sys.stderr)
        return 2
    address = sys.argv[1]
    is_http = address.startswith(("http://", "https://"))
    problem = http_problem(address) if is_http else asyncio.run(grpc_problem(address))
    if problem:
        print(f"{address} does not serve: {problem}", file=sys.stderr)
    return int(bool(problem))


if __name__ == "__main__":
    sys.exit(main())
