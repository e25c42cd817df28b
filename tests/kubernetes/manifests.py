"""What `deploy/kubernetes` renders to, and what is in it."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.server import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "kubernetes"
TOOLS = REPOSITORY / ".venv-kustomize"
FLEETS = ("cpu", "gpu", "gpu-mtls")
WORKLOADS = ("Deployment", "StatefulSet")

Object = dict[str, Any]


def _command() -> list[str]:
    """kustomize as it is installed here; `make kustomize` puts one beside the virtual environment."""
    ours = TOOLS / "shared" / "bin" / "linux" / "kustomize"
    if ours.exists():
        return [str(ours), "build"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    pytest.skip("there is no kustomize: `make kustomize`")


@dataclass(frozen=True)
class Pod:
    """A workload's pod, which has one container."""

    workload: Object
    configs: dict[str, dict[str, str]]

    @property
    def name(self) -> str:
        name: str = self.workload["metadata"]["name"]
        return name

    @property
    def labels(self) -> dict[str, str]:
        return self.workload["spec"]["template"]["metadata"]["labels"]

    @property
    def spec(self) -> Object:
        return self.workload["spec"]["template"]["spec"]

    @property
    def container(self) -> Object:
        (container,) = self.spec["containers"]
        return container

    @property
    def image(self) -> str:
        return str(self.container["image"]).partition(":")[0]

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}

    def environment(self) -> dict[str, str]:
        """Variables by name, as the container sees them; what is secret or known later is a stand-in."""
        found = {}
        for source in self.container.get("envFrom", ()):
            found.update(self.configs[source["configMapRef"]["name"]])
        for item in self.container["env"]:
            value = item.get("value", f"stand-in-of-{item['name']}")
            for name, earlier in found.items():
                value = value.replace(f"$({name})", earlier)
            found[item["name"]] = value
        return found

    def mounted(self) -> dict[str, Object]:
        """Volumes by the path where they are mounted."""
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", ())}
        for claim in self.workload["spec"].get("volumeClaimTemplates", ()):
            volumes[claim["metadata"]["name"]] = claim
        return {mount["mountPath"]: volumes[mount["name"]] for mount in self.container["volumeMounts"]}


class Fleet:
    """The objects of one kustomization."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def objects(self) -> list[Object]:
        rendered = subprocess.run([*_command(), str(FOLDER / self.name)], capture_output=True, text=True)
        assert rendered.returncode == 0, rendered.stderr
        return list(yaml.safe_load_all(rendered.stdout))

    def of_kind(self, *kinds: str) -> list[Object]:
        return [item for item in self.objects if item["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object:
        (found,) = (item for item in self.of_kind(kind) if item["metadata"]["name"] == name)
        return found

    @cached_property
    def pods(self) -> dict[str, Pod]:
        configs = {item["metadata"]["name"]: item["data"] for item in self.of_kind("ConfigMap")}
        return {
            item["metadata"]["name"]: Pod(item, configs) for item in self.objects if item["kind"] in WORKLOADS
        }

    def services_pods(self) -> Iterator[Pod]:
        """Those that run Quire's own code."""
        return (pod for pod in self.pods.values() if pod.name != "redis")


def compose_services() -> dict[str, Object]:
    """compose.yaml's services."""
    document = yaml.safe_load((Path(REPOSITORY) / "compose.yaml").read_text())
    services: dict[str, Object] = document["services"]
    return services
