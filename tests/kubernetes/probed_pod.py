"""A pod's process, really started as its manifest says but without any of its peers, and what its probes find."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quire.launcher import free_port
from tests.kubernetes.manifests import Object, Pod
from tests.support.server import REPOSITORY

_LIMIT_S = 10.0
_SECRETS = "/run/secrets/quire"
# Peers are names of the cluster: nobody is behind this port.
_PEERS = ("redis:6379", "tokenizer-svc:8001")
_NOBODY = "127.0.0.1:9"


@dataclass
class ProbedPod:
    """A running process, with the ports that its pod's ports are here."""

    pod: Pod
    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    environment: dict[str, str]

    def lives(self) -> bool:
        """Whether the process is still there."""
        return self.process.poll() is None

    def passes(self, name: str) -> bool:
        """Whether the container's probe `name` would be content now."""
        probe = self.pod.container[name]
        if "tcpSocket" in probe:
            return self._connects(self._port(probe["tcpSocket"]["port"]))
        if "httpGet" in probe:
            return self._answers(probe["httpGet"])
        if "grpc" in probe:
            return self._serves(probe["grpc"])
        return self._succeeds(probe["exec"]["command"])

    def _port(self, known_as: int | str) -> int:
        (name,) = (name for name, port in self.pod.ports.items() if known_as in (name, port))
        return self.ports[name]

    def _connects(self, port: int) -> bool:
        try:
            create_connection(("127.0.0.1", port), _LIMIT_S).close()
        except OSError:
            return False
        return True

    def _answers(self, probe: Object) -> bool:
        url = f"http://127.0.0.1:{self._port(probe['port'])}{probe['path']}"
        try:
            with closing(urllib.request.urlopen(url, timeout=_LIMIT_S)) as answer:
                return 200 <= answer.status < 400
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def _serves(self, probe: Object) -> bool:
        """As the kubelet asks: without a token."""
        request = health_pb2.HealthCheckRequest(service=probe.get("service", ""))
        with grpc.insecure_channel(f"127.0.0.1:{self._port(probe['port'])}") as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_LIMIT_S)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _succeeds(self, command: list[str]) -> bool:
        python, *arguments = command
        assert python == "python"
        here = [self._here(argument) for argument in arguments]
        return (
            subprocess.run(
                [sys.executable, *here], cwd=REPOSITORY, env=self.environment, stderr=subprocess.DEVNULL
            ).returncode
            == 0
        )

    def _here(self, text: str) -> str:
        for name, port in self.pod.ports.items():
            text = text.replace(f":{port}", f":{self.ports[name]}")
        return text


@contextmanager
def started(pod: Pod, folder: Path, replacements: dict[str, str]) -> Iterator[ProbedPod]:
    """The pod's process; `replacements` are of what only a cluster or another machine has, in flags and variables."""
    ports = {name: free_port() for name in pod.ports}
    replacements = {_SECRETS: str(folder), **dict.fromkeys(_PEERS, _NOBODY), **replacements}
    replacements |= {f"0.0.0.0:{pod.ports[name]}": f"127.0.0.1:{port}" for name, port in ports.items()}

    def here(text: str) -> str:
        for there, instead in replacements.items():
            text = text.replace(there, instead)
        return text

    environment = {key: value for key, value in os.environ.items() if not key.startswith("QUIRE_")}
    environment |= {"OMP_NUM_THREADS": "1"} | {name: here(item) for name, item in pod.environment().items()}
    for name in ("api-key", "rpc-token"):
        (folder / name).write_text("a-secret-of-tests-that-is-long-enough")
    command = [sys.executable, *pod.container["command"][1:], *map(here, pod.container["args"])]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    try:
        yield ProbedPod(pod, process, ports, environment)
    finally:
        process.kill()
        process.wait()
