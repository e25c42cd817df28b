"""The rendered manifests are valid, say only what the services know, and keep what they promise."""

import importlib
from pathlib import Path

import kubernetes_validate
import pytest

from gateway.settings import GatewaySettings
from gpu_worker.memory import GPU_ROWS
from quire.rpc.identity import dns_name
from quire.service import _STOP_LIMIT_S
from quire.settings import SERVICES, ServiceSettings, load_settings
from scheduler_svc.settings import SchedulerSettings
from tests.deploy.exposed_metrics import asked, exposed
from tests.kubernetes.manifests import TOOLS, Fleet, Pod, compose_services
from tests.support.server import REPOSITORY
from tokenizer_svc.settings import TokenizerSettings

# The oldest with every field that is used, and the newest whose schemas there are.
VERSIONS = ("1.30", "1.37")
# Of other projects, each with the module that has their schemas.
CUSTOM = {
    "cert-manager.io/v1": "cloudcoil.models.cert_manager.v1",
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
SECRETS = "/run/secrets/quire"


def settings_type(service: str) -> type[ServiceSettings]:
    module = importlib.import_module(f"{service}.settings")
    (found,) = (
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, ServiceSettings) and item is not ServiceSettings
    )
    return found


def service_of(pod: Pod) -> str:
    python, dash_m, module = pod.container["command"]
    assert (python, dash_m) == ("python", "-m")
    return str(module)


def secret_files(pod: Pod) -> set[str]:
    """Names of the files that are mounted from secrets."""
    volume = pod.mounted()[SECRETS]
    if "secret" in volume:
        items = volume["secret"]["items"]
    else:
        items = [item for source in volume["projected"]["sources"] for item in source["secret"]["items"]]
    return {item["path"] for item in items}


def settings_of(pod: Pod, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    """What the service reads from its flags and its environment, with files of its secrets in `folder`."""
    for name in secret_files(pod):
        (folder / name).write_text("stand-in-of-a-secret")
    for name, value in pod.environment().items():
        monkeypatch.setenv(name, value.replace(SECRETS, str(folder)))
    arguments = [argument.replace(SECRETS, str(folder)) for argument in pod.container["args"]]
    return load_settings(settings_type(service_of(pod)), service_of(pod), arguments)


@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu-mtls", "autoscaling"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_that_kubernetes_knows(
    rendered: dict[str, Fleet], name: str, version: str
) -> None:
    for item in rendered[name].objects:
        if item["apiVersion"] not in CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize(("name", "num_objects"), [("gpu-mtls", 7), ("autoscaling", 2)])
def test_objects_of_other_projects_have_the_fields_that_those_know(
    rendered: dict[str, Fleet], name: str, num_objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (TOOLS / "cloudcoil").exists():
        pytest.skip("there are no schemas: `make kustomize`")
    monkeypatch.syspath_prepend(TOOLS)
    found = [item for item in rendered[name].objects if item["apiVersion"] in CUSTOM]
    assert len(found) == num_objects
    for item in found:
        schema = getattr(importlib.import_module(CUSTOM[item["apiVersion"]]), item["kind"])
        read = schema.model_validate(item).model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert read == item  # what is not known is not read


def test_every_flag_and_variable_is_a_setting_of_its_service(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = set()
    for pod in fleet.services_pods():
        with monkeypatch.context() as patched:
            settings = settings_of(pod, tmp_path, patched)
        services.add(service_of(pod))
        assert settings.listen == f"0.0.0.0:{pod.ports.get('grpc', pod.ports.get('http'))}"
        assert settings.metrics_listen == f"0.0.0.0:{pod.ports['metrics']}"
        assert settings.rpc_token is not None
        assert settings.rpc_token.get_secret_value() == "stand-in-of-a-secret"
    assert services == set(SERVICES)


def test_a_pod_s_end_has_time_for_its_grace_period(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pod in fleet.services_pods():
        with monkeypatch.context() as patched:
            grace_s = settings_of(pod, tmp_path, patched).grace_s
        slept_s = pod.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod.spec["terminationGracePeriodSeconds"] >= slept_s + grace_s + _STOP_LIMIT_S, pod.name


@pytest.mark.parametrize("name", ["gpu", "gpu-mtls"])
def test_requests_wait_for_the_only_gpu_worker_to_load_again(
    rendered: dict[str, Fleet], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = []
    for service in ("scheduler-svc", "tokenizer-svc", "gateway"):
        with monkeypatch.context() as patched:
            settings.append(settings_of(rendered[name].pods[service], tmp_path, patched))
    scheduler, tokenizer, gateway = settings
    assert isinstance(scheduler, SchedulerSettings)
    assert isinstance(tokenizer, TokenizerSettings)
    assert isinstance(gateway, GatewaySettings)
    assert 300 <= scheduler.worker_return_s <= tokenizer.resume_s < gateway.max_request_s
    assert (
        f"{scheduler.worker_return_s:.0f} s in `gpu` and"
        in (REPOSITORY / "docs" / "kubernetes.md").read_text()
    )


def test_pods_have_no_more_rights_than_they_need(fleet: Fleet) -> None:
    assert fleet.named("Namespace", "quire")["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }
    for pod in fleet.pods.values():
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["securityContext"]["runAsNonRoot"] is True
        assert pod.spec["securityContext"]["runAsUser"] == 10001  # the user of deploy/Dockerfile
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in pod.mounted()
        assert "memory" in pod.container["resources"]["limits"]


def test_images_modules_and_ports_are_those_of_the_composed_fleet(fleet: Fleet) -> None:
    composed = compose_services()
    for pod in fleet.services_pods():
        service = service_of(pod)
        name = "gpu_worker_cuda" if service == "gpu_worker" and fleet.name != "cpu" else service
        assert pod.image == composed[name]["image"].partition(":")[0]
        command = composed[name]["command"]
        assert pod.container["command"] == command[:3]
        assert pod.container["args"][:2] == command[3:5]  # --listen and where
        if service == "gpu_worker":
            assert pod.container["args"][2:4] == command[5:7]  # --device and which
    assert fleet.pods["redis"].image == composed["redis"]["image"].partition(":")[0]
    dockerfile = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    assert '"redis-server", "/etc/quire-redis/redis.conf"' in dockerfile
    assert fleet.pods["redis"].container["command"] == ["redis-server", "/etc/quire-redis/redis.conf"]


def test_readiness_asks_what_the_composed_health_checks_ask(fleet: Fleet) -> None:
    composed = compose_services()
    gateway = fleet.pods["gateway"].container
    asked = composed["gateway"]["healthcheck"]["test"][-1]
    assert asked == f"http://127.0.0.1:8000{gateway['readinessProbe']['httpGet']['path']}"
    for pod in fleet.services_pods():
        service, container = service_of(pod), pod.container
        # What is not ready must not be restarted for it.
        liveness = container["livenessProbe"]
        assert "tcpSocket" in liveness or liveness["httpGet"]["path"] == "/health/live"
        if service == "gateway":
            continue
        check = composed[service]["healthcheck"]["test"]
        assert container["startupProbe"]["tcpSocket"] == liveness["tcpSocket"]
        probe = container["readinessProbe"]
        if fleet.name == "gpu-mtls":  # the kubelet's own gRPC probe knows no TLS
            assert probe["exec"]["command"] == check[1:]
            assert "grpc" not in probe
        else:
            assert f"127.0.0.1:{probe['grpc']['port']}" == check[-1]


def test_gateways_find_every_tokenizer_service_by_its_name(fleet: Fleet) -> None:
    arguments = fleet.pods["gateway"].container["args"]
    host, _, port = arguments[arguments.index("--tokenizers") + 1].partition(":")
    service = fleet.named("Service", host)
    assert service["spec"]["clusterIP"] == "None"  # so that the name has the address of each
    assert service["spec"]["selector"] == fleet.pods["tokenizer-svc"].labels
    assert [item["port"] for item in service["spec"]["ports"]] == [int(port)]


def test_only_the_one_before_reaches_a_service_and_redis_is_reached_by_three(fleet: Fleet) -> None:
    admitted: dict[str, object] = {}
    for policy in fleet.of_kind("NetworkPolicy"):
        app = policy["spec"]["podSelector"].get("matchLabels", {}).get("app")
        for rule in policy["spec"].get("ingress", ()) if app else ():
            sources = rule.get("from", [{}])
            (port,) = rule["ports"]
            assert port["port"] in fleet.pods[app].ports.values()
            (source,) = sources
            selector = source.get("podSelector", {})
            admitted[app] = selector.get("matchLabels", {}).get("app") or [
                value for item in selector.get("matchExpressions", ()) for value in item["values"]
            ]
    assert admitted == {
        "gateway": [],  # anyone
        "tokenizer-svc": "gateway",
        "scheduler-svc": "tokenizer-svc",
        "gpu-worker": "scheduler-svc",
        "redis": ["tokenizer-svc", "scheduler-svc", "gpu-worker"],
    }
    default = fleet.named("NetworkPolicy", "default")["spec"]
    assert default["podSelector"] == {}
    assert default["policyTypes"] == ["Ingress", "Egress"]


def test_budgets_and_autoscalers_name_workloads_that_there_are_and_nobody_else_counts_them(
    fleet: Fleet, rendered: dict[str, Fleet]
) -> None:
    budgets = {
        item["spec"]["selector"]["matchLabels"]["app"] for item in fleet.of_kind("PodDisruptionBudget")
    }
    assert budgets == {pod.name for pod in fleet.services_pods()}
    scaled = fleet.of_kind("HorizontalPodAutoscaler") + rendered["autoscaling"].of_kind("ScaledObject")
    targets = {
        (item["spec"]["scaleTargetRef"]["kind"], item["spec"]["scaleTargetRef"]["name"]) for item in scaled
    }
    assert targets == {
        ("Deployment", "gateway"),
        ("Deployment", "tokenizer-svc"),
        ("StatefulSet", "gpu-worker"),
    }
    for kind, name in targets:
        # Each `kubectl apply` would put back what the autoscaler has made of it.
        assert "replicas" not in fleet.named(kind, name)["spec"]
    assert fleet.pods["scheduler-svc"].workload["spec"]["replicas"] == 2
    assert fleet.pods["redis"].workload["spec"]["replicas"] == 1


def test_workers_follow_requests_that_wait_and_run_as_schedulers_expose_them(
    rendered: dict[str, Fleet],
) -> None:
    spec = rendered["autoscaling"].named("ScaledObject", "gpu-worker")["spec"]
    series = exposed()
    thresholds = {}
    for trigger in (item["metadata"] for item in spec["triggers"]):
        assert trigger["serverAddress"] == "http://prometheus-operated.monitoring:9090"
        (metric,) = asked(trigger["query"]).metrics
        assert metric in series
        thresholds[metric] = int(trigger["threshold"])
    assert set(thresholds) == {"vllm:num_requests_waiting", "vllm:num_requests_running"}
    # A worker that runs as many as it can is one that another should help.
    assert 0.5 * min(GPU_ROWS) < thresholds["vllm:num_requests_running"] < 0.9 * min(GPU_ROWS)
    # This one counts only where a fleet may shrink to nothing.
    assert spec["minReplicaCount"] >= 1
    assert "cooldownPeriod" not in spec
    endpoints = rendered["autoscaling"].named("PodMonitor", "quire")["spec"]["podMetricsEndpoints"]
    assert [endpoint["port"] for endpoint in endpoints] == ["metrics"]


def test_only_workers_with_gpus_ask_for_one(rendered: dict[str, Fleet]) -> None:
    limits = {
        name: rendered[name].pods["gpu-worker"].container["resources"]["limits"] for name in ("cpu", "gpu")
    }
    assert limits["gpu"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits["cpu"]


def test_secrets_are_made_by_the_operator_and_each_is_documented(fleet: Fleet) -> None:
    assert fleet.of_kind("Secret") == []
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    keys = {"api-key", "rpc-token", "keys.json"}
    for pod in fleet.pods.values():
        references = [item.get("valueFrom", {}).get("secretKeyRef", {}) for item in pod.container["env"]]
        keys |= {reference["key"] for reference in references if reference}
    for key in keys:
        assert f"`{key}`" in page or f"--from-literal={key}=" in page, key


def test_certificates_carry_the_names_that_the_services_look_for(rendered: dict[str, Fleet]) -> None:
    fleet = rendered["gpu-mtls"]
    for pod in fleet.services_pods():
        name = dns_name(service_of(pod))
        certificate = fleet.named("Certificate", name)["spec"]
        assert name in certificate["dnsNames"]
        assert "127.0.0.1" in certificate["ipAddresses"]  # for the health check
        assert {"server auth", "client auth"} <= set(certificate["usages"])
        assert pod.mounted()["/run/tls"]["secret"]["secretName"] == certificate["secretName"]
        environment = pod.environment()
        files = [environment[f"QUIRE_TLS_{part}"] for part in ("CERT", "KEY", "CA")]
        assert files == ["/run/tls/tls.crt", "/run/tls/tls.key", "/run/tls/ca.crt"]
