"""A real API server takes the manifests, and its controllers and scheduler do what docs/kubernetes.md says."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.kubernetes.control_plane import ControlPlane, control_plane, is_ready, until
from tests.kubernetes.kubelets import Kubelets
from tests.kubernetes.manifests import FOLDER, Fleet, Object
from tests.kubernetes.test_manifests import CUSTOM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZES = {"gateway": 2, "tokenizer-svc": 2, "scheduler-svc": 2, "gpu-worker": 1, "redis": 1}
SECRETS = ("api-key", "rpc-token", "redis-password")
# Two zones of two nodes; one of each two has a GPU, and takes only those who ask for one.
ZONES = {"a-1": "a", "a-2": "a", "b-1": "b", "b-2": "b"}
WITH_GPU = {"a-2", "b-2"}
GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster with nodes, and nothing on them."""
    with control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
        print(f"Kubernetes {plane.version}")
        for name, zone in ZONES.items():
            plane.add_node(name, zone, **({GPU: "1"} if name in WITH_GPU else {}))
        for name in WITH_GPU:
            plane.kubectl("taint", "node", name, f"{GPU}=:NoSchedule")
        yield plane


@pytest.fixture
def kubelets(plane: ControlPlane) -> Iterator[Kubelets]:
    """The nodes' part, and what docs/kubernetes.md asks for before a fleet."""
    disks = [f"disk-{number}" for number in range(5)]
    for name in disks:
        plane.add_disk(name, "20Gi")
    plane.kubectl("apply", "-f", FOLDER / "base" / "namespace.yaml")
    literals = [f"--from-literal={key}=a-secret-of-tests" for key in SECRETS]
    plane.kubectl("create", "secret", "generic", "quire", *literals)
    with Kubelets(plane) as kubelets:
        yield kubelets
        plane.kubectl("delete", "namespace", "quire")
        plane.kubectl("delete", "persistentvolume", *disks)


def known(fleet: Fleet) -> list[Object]:
    """The objects of Kubernetes itself."""
    return [item for item in fleet.objects if item["apiVersion"] not in CUSTOM]


def told(container: Object) -> object:
    """What differs between fleets, without what the server fills in."""
    variables = [(item["name"], item.get("value")) for item in container["env"]]
    return container["image"], container["args"], variables, container.get("envFrom")


def is_up(plane: ControlPlane, fleet: Fleet, **sizes: int) -> bool:
    """Whether as many pods as there should be, and no others, are ready and of this fleet."""
    ready: dict[str, int] = dict.fromkeys(SIZES, 0)
    for pod in plane.items("pods"):
        app = pod["metadata"]["labels"]["app"]
        (container,) = pod["spec"]["containers"]
        if told(container) != told(fleet.pods[app].container):
            return False
        ready[app] += is_ready(pod)
    return ready == SIZES | sizes


def nodes_of(pods: list[Any]) -> set[str]:
    return {pod["spec"]["nodeName"] for pod in pods}


def uids(pods: list[Any]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def test_a_fleet_is_taken_without_a_warning_and_every_pod_finds_a_node(
    plane: ControlPlane, kubelets: Kubelets, fleet: Fleet
) -> None:
    plane.apply(known(fleet), "--server-side", "--dry-run=server")
    plane.apply(known(fleet), "--dry-run=server")
    plane.apply(known(fleet))
    until(lambda: is_up(plane, fleet), "not every pod is ready")
    for app in ("gateway", "tokenizer-svc", "scheduler-svc"):
        assert {ZONES[node] for node in nodes_of(plane.pods(app))} == {"a", "b"}, app
        assert not nodes_of(plane.pods(app)) & WITH_GPU, app
    for service in plane.items("endpoints"):
        app = service["metadata"]["name"]
        (subset,) = service["subsets"]
        addresses = {item["ip"] for item in subset["addresses"]}
        assert addresses == {pod["status"]["podIP"] for pod in plane.pods(app)}
        (port,) = subset["ports"]
        assert port["port"] == fleet.pods[app].ports[port["name"]]


def test_each_worker_has_a_gpu_of_its_own_and_one_more_waits_for_a_node(
    plane: ControlPlane, kubelets: Kubelets, rendered: dict[str, Fleet]
) -> None:
    fleet = rendered["gpu"]
    plane.apply(known(fleet))
    plane.kubectl("scale", "statefulset", "gpu-worker", "--replicas", "3")
    until(lambda: is_up(plane, fleet, **{"gpu-worker": 2}), "not two workers are ready")
    until(lambda: len(plane.pods("gpu-worker")) == 3, "there is no third worker")
    assert nodes_of(plane.ready("gpu-worker")) == WITH_GPU

    def waits_for() -> list[str]:
        """What the scheduler says of the pod without a node."""
        (pod,) = (pod for pod in plane.pods("gpu-worker") if "nodeName" not in pod["spec"])
        return [item.get("message", "") for item in pod["status"].get("conditions", ())]

    until(lambda: any(f"Insufficient {GPU}" in message for message in waits_for()), "nobody says why")


def test_applying_again_changes_nothing_and_leaves_the_fleet_as_large_as_it_is(
    plane: ControlPlane, kubelets: Kubelets, rendered: dict[str, Fleet]
) -> None:
    fleet, sizes = rendered["cpu"], {"gateway": 5, "tokenizer-svc": 4, "gpu-worker": 3}
    plane.apply(known(fleet))
    for name in sizes:
        kind = "statefulset" if name == "gpu-worker" else "deployment"
        plane.kubectl("scale", kind, name, "--replicas", str(sizes[name]))
    until(lambda: is_up(plane, fleet, **sizes), "the fleet does not grow")

    kinds = "deployments,statefulsets,services,configmaps,networkpolicies"
    before = {(item["kind"], item["metadata"]["name"]): item["metadata"] for item in plane.items(kinds)}
    plane.apply(known(fleet))
    after = {(item["kind"], item["metadata"]["name"]): item["metadata"] for item in plane.items(kinds)}
    assert {key: item["generation"] for key, item in before.items() if "generation" in item} == {
        key: item["generation"] for key, item in after.items() if "generation" in item
    }
    assert before.keys() == after.keys()
    assert is_up(plane, fleet, **sizes)


def test_one_fleet_becomes_another_while_two_of_each_that_has_two_are_ready(
    plane: ControlPlane, kubelets: Kubelets, rendered: dict[str, Fleet]
) -> None:
    apps = ("gateway", "tokenizer-svc", "scheduler-svc")

    plane.apply(known(rendered["cpu"]))
    until(lambda: is_up(plane, rendered["cpu"]), "the fleet of CPUs is not up")
    kubelets.fewest.clear()
    for name in ("gpu", "gpu-mtls", "cpu"):
        before = {app: uids(plane.pods(app)) for app in SIZES}
        plane.apply(known(rendered[name]))
        until(lambda name=name: is_up(plane, rendered[name]), f"{name} is not up")
        after = {app: uids(plane.pods(app)) for app in SIZES}
        assert after["redis"] == before["redis"]
        assert not after["tokenizer-svc"] & before["tokenizer-svc"]
        assert not after["gpu-worker"] & before["gpu-worker"]

    # As certificates are taken up.
    before = {app: uids(plane.pods(app)) for app in SIZES}
    plane.kubectl("rollout", "restart", "deployment")
    plane.kubectl("rollout", "status", "--timeout", "1m", "deployment/scheduler-svc")
    plane.kubectl("rollout", "restart", "statefulset/gpu-worker")
    until(
        lambda: (
            is_up(plane, rendered["cpu"])
            and not any(uids(plane.pods(app)) & before[app] for app in (*apps, "gpu-worker"))
        ),
        "not every pod is a new one",
    )
    assert {app: kubelets.fewest[app] for app in apps} == dict.fromkeys(apps, 2)
    assert kubelets.fewest["redis"] == 1


def test_a_drain_takes_one_of_each_and_the_next_when_its_successor_is_ready(
    plane: ControlPlane, kubelets: Kubelets, rendered: dict[str, Fleet]
) -> None:
    fleet = rendered["cpu"]
    plane.apply(known(fleet))
    until(lambda: is_up(plane, fleet), "the fleet is not up")
    until(
        lambda: all(item["status"]["disruptionsAllowed"] == 1 for item in plane.items("pdb")),
        "the budgets allow nothing",
    )
    kubelets.are_ready = False
    for app in ("gateway", "tokenizer-svc", "scheduler-svc"):
        first, second = plane.ready(app)
        assert plane.evict(first) == 201, app
        until(lambda app=app: len(plane.pods(app)) == 2, f"{app} has no successor")
        assert plane.evict(second) == 429, app
        assert len(plane.ready(app)) == 1, app
    (redis,) = plane.ready("redis")
    assert plane.evict(redis) == 201
    kubelets.are_ready = True
    until(lambda: is_up(plane, fleet), "the fleet is not whole again")

    for node in ZONES:
        plane.kubectl("drain", node, "--delete-emptydir-data", "--timeout", "60s")
        plane.kubectl("uncordon", node)
    until(lambda: is_up(plane, fleet), "the fleet does not outlast its nodes' drains")
