"""What compose.yaml and the Dockerfile promise of every container, read from the files themselves."""

import re
from typing import Any

import pytest
import yaml

from quire.settings import SERVICES as WITH_CERTIFICATES
from tests.support.server import REPOSITORY

COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
# Images without a shell or any program that could ask them.
WITHOUT_CHECK = {"collector", "jaeger"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_do_no_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    assert not {"privileged", "pid", "network_mode", "user"} & service.keys()


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - WITHOUT_CHECK))
def test_a_container_says_whether_it_serves(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", OURS)
def test_the_stop_period_is_longer_than_what_running_requests_get(name: str) -> None:
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > 30 + 5


def test_only_the_front_is_published_and_what_else_is_only_to_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.pop("front") == ["${PORT:-8000}:8000"]
    for name, ports in published.items():
        assert SERVICES[name]["profiles"] == ["observability"]
        assert all(port.startswith("127.0.0.1:") for port in ports)


def test_without_a_profile_a_laptop_can_start_everything() -> None:
    plain = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert plain == {"front", "gateway", "tokenizer_svc", "scheduler_svc", "gpu_worker", "redis"}


def test_images_of_others_are_pinned_to_a_version() -> None:
    for name in SERVICES.keys() - set(OURS):
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"]), name


def test_every_image_of_ours_ends_as_a_user_without_rights() -> None:
    stages = re.split(r"^FROM ", (REPOSITORY / "deploy" / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    users = {}
    for stage in stages:
        name = stage.split("\n", 1)[0].split(" AS ")[1]
        users[name] = re.findall(r"^USER (.+)$", stage, re.MULTILINE)[-1:]
    for name in OURS:
        assert users[SERVICES[name]["build"]["target"]] in (["quire"], ["10001:10001"])


def test_redis_writes_where_its_user_may_whatever_builds_the_image() -> None:
    """Not in /data: the base image declares it a volume, so the classic builder drops a change of its owner."""
    configuration = (REPOSITORY / "deploy" / "redis" / "redis.conf").read_text()
    (directory,) = re.findall(r"^dir (.+)$", configuration, re.MULTILINE)
    assert directory != "/data"
    assert SERVICES["redis"]["volumes"] == [f"redis:{directory}"]
    stage = (REPOSITORY / "deploy" / "Dockerfile").read_text().split("AS redis\n")[1]
    assert f"install --directory --owner 10001 --group 10001 {directory}\n" in stage
    kubernetes = (REPOSITORY / "deploy" / "kubernetes" / "base" / "redis.yaml").read_text()
    assert f"mountPath: {directory}}}" in kubernetes


def test_with_mutual_tls_each_service_has_its_own_certificate_and_no_other() -> None:
    services = yaml.safe_load((REPOSITORY / "deploy" / "mtls.yaml").read_text())["services"]
    assert services.pop("gpu_worker_cuda") == services["gpu_worker"]
    assert services.keys() == set(WITH_CERTIFICATES)
    for name, service in services.items():
        assert service["volumes"] == [f"${{QUIRE_CERTS:-./certs}}/{name}:/run/tls:ro"]
        assert service["environment"] == {
            "QUIRE_TLS_CERT": "/run/tls/tls.crt",
            "QUIRE_TLS_KEY": "/run/tls/tls.key",
            "QUIRE_TLS_CA": "/run/tls/ca.crt",
        }


def test_services_that_scale_have_no_name_and_no_state_of_their_own() -> None:
    for name in ("gateway", "tokenizer_svc", "scheduler_svc", "gpu_worker"):
        assert not {"container_name", "hostname", "ports"} & SERVICES[name].keys()
        assert "QUIRE_METRICS_LISTEN" in SERVICES[name]["environment"]
