"""Each pod's process, started alone: its probes let it live, and say of its readiness what is so."""

import time
from pathlib import Path

import pytest

from quire.rpc.identity import dns_name
from tests.kubernetes.manifests import Fleet
from tests.kubernetes.probed_pod import ProbedPod, started
from tests.support.identities import TestAuthority

# The model and the device of another machine.
HERE = {"Qwen/Qwen3-0.6B": "models/demo", "cuda": "cpu"}
_START_LIMIT_S = 120.0
_POLL_S = 0.1


def until_passed(pod: ProbedPod, probe: str, log: Path) -> None:
    """Return once the probe passes; an AssertionError shows what the process logged."""
    deadline = time.monotonic() + _START_LIMIT_S
    while not pod.passes(probe):
        assert pod.lives(), log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(_POLL_S)


@pytest.mark.parametrize("name", ["gateway", "tokenizer-svc", "scheduler-svc", "gpu-worker"])
@pytest.mark.parametrize("fleet_name", ["cpu", pytest.param("gpu-mtls", marks=pytest.mark.slow)])
def test_a_pod_without_its_peers_lives_and_is_ready_for_its_own_part(
    rendered: dict[str, Fleet], fleet_name: str, name: str, tmp_path: Path
) -> None:
    pod = rendered[fleet_name].pods[name]
    service = pod.container["command"][-1]
    replacements = {**HERE, "/run/tls": str(tmp_path / "tls")}
    if fleet_name == "gpu-mtls":
        TestAuthority().files(tmp_path / "tls", dns_name(service), hosts=["127.0.0.1"])
    with started(pod, tmp_path, replacements) as running:
        if "startupProbe" in pod.container:
            until_passed(running, "startupProbe", tmp_path / "log")
        until_passed(running, "livenessProbe", tmp_path / "log")
        if name == "gateway":  # nobody would take a request from it
            assert not running.passes("readinessProbe")
        else:
            until_passed(running, "readinessProbe", tmp_path / "log")
        assert running.passes("livenessProbe")
        assert running.lives()
