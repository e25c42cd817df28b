"""Metrics of other services, fetched and merged into one Prometheus exposition."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

import structlog

from gateway import metrics

log = structlog.get_logger()

_FETCH_LIMIT_S = 1.0
_MAX_BYTES = 4 * 2**20


async def fetch_all(urls: Sequence[str]) -> dict[str, str]:
    """The expositions at `urls`, by URL; one that is away is left out, and the gauge of its URL says so."""
    texts = await asyncio.gather(*(_fetch(url) for url in urls))
    for url, text in zip(urls, texts, strict=True):
        metrics.metrics_upstream_up.labels(url).set(text is not None)
    return {url: text for url, text in zip(urls, texts, strict=True) if text is not None}


async def _fetch(url: str) -> str | None:
    try:
        async with asyncio.timeout(_FETCH_LIMIT_S):
            return await _get(url)
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
        log.debug("metrics upstream is away", url=url, error=str(error))
        return None


async def _get(url: str) -> str:
    """One GET over HTTP/1.0, whose answer ends with the connection: no library for a loopback call."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    try:
        writer.write(f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if head.split(b" ", 2)[1:2] != [b"200"]:
            raise ValueError(f"{url} answered {head.splitlines()[0]!r}")
        body = bytearray()
        while piece := await reader.read(65536):
            body += piece
            if len(body) > _MAX_BYTES:
                raise ValueError(f"{url} has more than {_MAX_BYTES} bytes of metrics")
        return body.decode()
    finally:
        writer.close()


def add_up(expositions: Sequence[str]) -> str:
    """One exposition of several processes of the same service: equal series are added."""
    if len(expositions) == 1:
        return expositions[0]
    totals: dict[str, float] = {}
    for exposition in expositions:
        for series, value in _samples(exposition):
            totals[series] = totals.get(series, 0.0) + value
    lines = merge(expositions).splitlines()
    return "".join(f"{_added_up(line, totals)}\n" for line in lines)


def _samples(exposition: str) -> Iterator[tuple[str, float]]:
    for line in exposition.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            yield series, float(value)


def _added_up(line: str, totals: Mapping[str, float]) -> str:
    series = line.rpartition(" ")[0]
    return f"{series} {totals[series]!r}" if series in totals and not line.startswith("#") else line


def merge(expositions: Sequence[str]) -> str:
    """One exposition with each family once, in which the first of equal series counts.

    The format wants all lines of a family in one group, so two services with the same metric cannot just be
    put one after the other.
    """
    families: dict[str, _Family] = {}
    for exposition in expositions:
        family: _Family | None = None
        for line in exposition.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                if family is None or family.name != name:
                    family = families.setdefault(name, _Family(name))
                family.describe(line)
            elif line and not line.startswith("#") and family is not None:
                family.add(line)
    return "".join(family.text() for family in families.values())


class _Family:
    """The lines of one metric family."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._headers: dict[str, str] = {}
        self._samples: dict[str, str] = {}

    def describe(self, line: str) -> None:
        self._headers.setdefault(line[:6], line)

    def add(self, line: str) -> None:
        series, _, _ = line.rpartition(" ")
        self._samples.setdefault(series, line)

    def text(self) -> str:
        return "\n".join((*self._headers.values(), *self._samples.values(), ""))
