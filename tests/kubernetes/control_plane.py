"""A real control plane of Kubernetes on this machine: etcd, the API server, the controllers and the scheduler.

No kubelet: nodes are objects, and tests.kubernetes.kubelets says of each pod that is placed that it runs. So all is
decided as in a cluster, and nothing is started.
"""

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from quire.launcher import free_port
from tests.kubernetes.manifests import Object
from tests.support.server import REPOSITORY

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
# Those of tools/build_kubernetes.sh, or others of yours.
FOLDER = Path(os.environ.get("KUBERNETES_BIN") or REPOSITORY / "out" / "kubernetes" / "bin")
_TOKEN = "an-administrator-of-tests"
_LIMIT_S = 120.0
_POLL_S = 0.1
# The first release with every field that the manifests use.
_COMPLETE = (1, 30)
# A node's own controllers: nobody is there who would say that these nodes live.
_CONTROLLERS = "*,-nodelifecycle,-nodeipam,-route,-service,-cloud-node-lifecycle"


def until(condition: Callable[[], object], what: str) -> None:
    """Return once it is so; an AssertionError says what did not come about."""
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(_POLL_S)


def known_to(version: tuple[int, int], item: Object) -> Object:
    """The object as a release before 1.30 has it: the same but for what came later."""
    if version >= _COMPLETE:
        return item
    item = deepcopy(item)
    newer = {"autoscaling/v2": "autoscaling/v2beta2", "policy/v1": "policy/v1beta1"}
    item["apiVersion"] = newer.get(item["apiVersion"], item["apiVersion"])
    if item["kind"] == "PodDisruptionBudget":
        del item["spec"]["unhealthyPodEvictionPolicy"]
    if item["kind"] == "Service":  # where the server applies, it misses the default
        for port in item["spec"]["ports"]:
            port.setdefault("protocol", "TCP")
    if item["kind"] in ("Deployment", "StatefulSet"):
        for container in item["spec"]["template"]["spec"]["containers"]:
            probe = container["readinessProbe"]
            if "grpc" in probe:
                probe["tcpSocket"] = probe.pop("grpc")
            handler = container.get("lifecycle", {}).get("preStop", {})
            if "sleep" in handler:
                handler["exec"] = {"command": ["sleep", str(handler.pop("sleep")["seconds"])]}
    return item


def is_ready(pod: Any) -> bool:
    """Whether a pod takes requests, and is not leaving."""
    said = {item["type"]: item["status"] for item in pod["status"].get("conditions", ())}
    return "deletionTimestamp" not in pod["metadata"] and said.get("Ready") == "True"


class ControlPlane:
    """What kubectl and the API say; everything of tests is in the namespace `quire`."""

    def __init__(self, folder: Path, port: int, version: tuple[int, int]) -> None:
        self.version = version
        self._folder = folder
        authority = folder / "certs" / "apiserver.crt"
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(authority)}
        context = {"cluster": "here", "user": "admin", "namespace": "quire"}
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "here", "cluster": cluster}],
                    "users": [{"name": "admin", "user": {"token": _TOKEN}}],
                    "contexts": [{"name": "here", "context": context}],
                    "current-context": "here",
                }
            )
        )
        until(authority.exists, "the API server makes no certificate")
        self.api = httpx.Client(
            base_url=cluster["server"],
            verify=ssl.create_default_context(cafile=str(authority)),
            headers={"Authorization": f"Bearer {_TOKEN}"},
            timeout=_LIMIT_S,
        )

    def answers(self) -> bool:
        """Whether the API server would take requests."""
        with contextlib.suppress(httpx.TransportError):
            return self.api.get("/readyz").status_code == 200
        return False

    def kubectl(self, *arguments: str | Path, given: str | None = None) -> str:
        """What it prints. A warning is an error, which is an AssertionError with what it says."""
        command = [FOLDER / "kubectl", "--kubeconfig", self.kubeconfig, "--warnings-as-errors"]
        command += ["--cache-dir", self._folder / "cache"]
        done = subprocess.run([*command, *arguments], input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        # Its own warnings, of what it reads and not of what the server says, it only prints.
        assert "warning" not in done.stderr.lower(), done.stderr
        return done.stdout

    def apply(self, objects: list[Object], *flags: str) -> str:
        """`kubectl apply` of what this release knows."""
        text = yaml.safe_dump_all([known_to(self.version, item) for item in objects])
        return self.kubectl("apply", *flags, "-f", "-", given=text)

    def items(self, kinds: str) -> list[Any]:
        """The objects of some kinds."""
        found: list[Any] = json.loads(self.kubectl("get", kinds, "--output", "json"))["items"]
        return found

    def pods(self, app: str) -> list[Any]:
        """Those of one workload that are not leaving."""
        return [
            pod
            for pod in self.items("pods")
            if pod["metadata"]["labels"].get("app") == app and "deletionTimestamp" not in pod["metadata"]
        ]

    def ready(self, app: str) -> list[Any]:
        """Those that take requests."""
        return [pod for pod in self.pods(app) if is_ready(pod)]

    def evict(self, pod: Any) -> int:
        """Ask a pod away, as a drain does; the HTTP status."""
        name = pod["metadata"]["name"]
        version = "policy/v1" if self.version >= _COMPLETE else "policy/v1beta1"
        body = {"apiVersion": version, "kind": "Eviction", "metadata": {"name": name, "namespace": "quire"}}
        return self.api.post(f"/api/v1/namespaces/quire/pods/{name}/eviction", json=body).status_code

    def add_node(self, name: str, zone: str, **resources: str) -> None:
        """A node that takes pods."""
        room = {"cpu": "64", "memory": "512Gi", "pods": "110"} | resources
        labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        self.api.post("/api/v1/nodes", json=node).raise_for_status()
        ready = {"type": "Ready", "status": "True", "reason": "Stand-in", "message": ""}
        status = {"status": {"capacity": room, "allocatable": room, "conditions": [ready]}}
        self.patch(f"/api/v1/nodes/{name}/status", status)

    def add_disk(self, name: str, storage: str) -> None:
        """A volume for a claim that names no class."""
        spec = {
            "capacity": {"storage": storage},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": f"/nowhere/{name}"},
        }
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
        self.api.post("/api/v1/persistentvolumes", json=volume).raise_for_status()

    def patch(self, path: str, body: Object) -> None:
        """Change part of an object that may be gone."""
        headers = {"Content-Type": "application/strategic-merge-patch+json"}
        self.api.patch(path, content=json.dumps(body), headers=headers)


@contextmanager
def _process(folder: Path, program: str, *flags: str | Path) -> Iterator[None]:
    log = folder / f"{program}.log"
    with log.open("wb") as output:
        process = subprocess.Popen([FOLDER / program, *flags], cwd=folder, stdout=output, stderr=output)
    try:
        yield
        assert process.poll() is None, log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait()


@contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """One that takes requests, without a node."""
    if missing := [program for program in PROGRAMS if not shutil.which(FOLDER / program)]:
        pytest.skip(f"there is no {missing[0]} in {FOLDER}: tools/build_kubernetes.sh builds one")
    said = subprocess.run(
        [FOLDER / "kube-apiserver", "--version"], capture_output=True, text=True, check=True
    )
    major, minor = said.stdout.removeprefix("Kubernetes v").split(".")[:2]
    store, peers, port = (free_port() for _ in range(3))
    (folder / "tokens.csv").write_text(f"{_TOKEN},admin,admin,system:masters\n")
    key = folder / "service-accounts.key"
    signing = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key.write_bytes(signing.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    with ExitStack() as processes:

        def start(program: str, *flags: str | Path) -> None:
            processes.enter_context(_process(folder, program, *flags))

        here = f"http://127.0.0.1:{store}"
        start(
            "etcd",
            *("--listen-client-urls", here, "--advertise-client-urls", here),
            *("--listen-peer-urls", f"http://127.0.0.1:{peers}", "--data-dir", folder / "etcd"),
        )
        start(
            "kube-apiserver",
            *("--etcd-servers", here, "--bind-address", "127.0.0.1", "--secure-port", str(port)),
            *("--cert-dir", folder / "certs", "--token-auth-file", "tokens.csv"),
            *("--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.0.0.0/24"),
            *("--service-account-issuer", "https://kubernetes.default"),
            *("--service-account-signing-key-file", key, "--service-account-key-file", key),
            # Its taint is taken away by the controller that is off.
            *("--disable-admission-plugins", "TaintNodesByCondition"),
        )
        plane = ControlPlane(folder, port, (int(major), int(minor)))
        processes.callback(plane.api.close)
        until(plane.answers, "the API server is not ready")
        common = ["--kubeconfig", plane.kubeconfig, "--leader-elect=false", "--bind-address", "127.0.0.1"]
        if plane.version < (1, 24):  # releases that would open a port without TLS too
            common += ["--port", "0"]
        start(
            "kube-controller-manager",
            *(*common, "--secure-port", str(free_port()), "--cert-dir", folder / "controllers"),
            *("--controllers", _CONTROLLERS, "--horizontal-pod-autoscaler-sync-period", "1s"),
            *(
                "--service-account-private-key-file",
                key,
                "--root-ca-file",
                folder / "certs" / "apiserver.crt",
            ),
        )
        start(
            "kube-scheduler", *common, "--secure-port", str(free_port()), "--cert-dir", folder / "scheduler"
        )
        yield plane
