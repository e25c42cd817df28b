"""Whether the time of a refusal tells how much of a wrong API key is right.

    python -m benchmarks.key_timing

A gateway as a process, with a key of its own among a hundred others in its file. Wrong keys of four kinds are sent in
random order over one connection: with nothing in common with the real one, with its first half, with all but its last
character, and with one character too many. Microseconds from the request's last byte to the answer's first line. The
difference of each kind's median from the first kind's stands beside the interval in which 95 of 100 resamplings of the
same answers have it (bootstrap): what does not lie clearly off zero tells nothing.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from benchmarks.service_processes import REPOSITORY
from quire import keys
from quire.bench.report import print_table
from quire.launcher import free_port

_RESAMPLINGS = 1000
_OTHER_KEYS = 100


def wrong_keys(key: str, random: Random) -> dict[str, str]:
    """One of each kind."""

    def other(character: str) -> str:
        return random.choice([c for c in "abcdefghijklmnopqrstuvwxyz" if c != character])

    wrong = "".join(map(other, key))
    half = len(key) // 2
    return {
        "nothing in common": wrong,
        "the first half": key[:half] + wrong[half:],
        "all but the last": key[:-1] + other(key[-1]),
        "one too many": key + other(""),
    }


class Stranger:
    """A connection on which every request is refused."""

    def __init__(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client, self._answers = client, client.makefile("rb")

    def ask(self, key: str) -> float:
        """Microseconds to the answer."""
        request = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
        started = time.perf_counter_ns()
        self._client.sendall(request)
        status = self._answers.readline()
        took_ns = time.perf_counter_ns() - started
        if not status.startswith(b"HTTP/1.1 401 "):
            raise RuntimeError(f"not refused: {status!r}")
        length = 0
        while (line := self._answers.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        self._answers.read(length)
        return took_ns / 1e3


def measure(port: int, key: str, rounds: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Times by kind; each round sends every kind once, in an order of its own."""
    random = Random(seed)
    kinds = list(wrong_keys(key, random))
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with socket.create_connection(("127.0.0.1", port)) as client:
        stranger = Stranger(client)
        for _ in range(rounds):
            random.shuffle(kinds)
            found = wrong_keys(key, random)
            for kind in kinds:
                times[kind].append(stranger.ask(found[kind]))
    return {kind: np.asarray(values) for kind, values in times.items()}


def difference(
    values: NDArray[np.float64], first: NDArray[np.float64], random: np.random.Generator
) -> tuple[float, float, float]:
    """Of the medians; and the bounds of its bootstrap interval."""
    pairs = np.empty(_RESAMPLINGS)
    for i in range(_RESAMPLINGS):
        pairs[i] = np.median(random.choice(values, len(values))) - np.median(random.choice(first, len(first)))
    low, high = np.quantile(pairs, (0.025, 0.975))
    return float(np.median(values) - np.median(first)), float(low), float(high)


def _until_listening(port: int) -> None:
    while True:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5000, help="answers of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the wrong keys and their order")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quire-") as folder:
        path, port = Path(folder) / "keys.json", free_port()
        others = [keys.record(keys.mint(), f"tenant-{number}") for number in range(_OTHER_KEYS)]
        key = keys.mint()
        keys.save(path, [*others[: _OTHER_KEYS // 2], keys.record(key, "real"), *others[_OTHER_KEYS // 2 :]])
        flags = ("--listen", f"127.0.0.1:{port}", "--keys-file", str(path))
        gateway = subprocess.Popen(
            [sys.executable, "-m", "gateway", *flags],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.DEVNULL,
        )
        try:
            _until_listening(port)
            measure(port, key, 200, seed=-1)
            times = measure(port, key, arguments.rounds, arguments.seed)
        finally:
            gateway.send_signal(signal.SIGKILL)
            gateway.wait()
    random = np.random.default_rng(arguments.seed)
    first = next(iter(times.values()))
    rows = []
    for kind, values in times.items():
        delta, low, high = difference(values, first, random)
        rows.append(
            {
                "the wrong key has": kind,
                "answers": len(values),
                "median us": float(np.median(values)),
                "difference": f"{delta:+.2f}",
                "95 % of resamplings": f"{low:+.2f} to {high:+.2f}",
            }
        )
    print_table(rows)


if __name__ == "__main__":
    main()
