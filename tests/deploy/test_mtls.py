"""The composed fleet with deploy/mtls.yaml on top: its services talk only to who has a certificate."""

import subprocess
from pathlib import Path

import openai
import pytest
from typer.testing import CliRunner

from quire.cli import app
from quire.settings import SERVICES
from tests.deploy.composed_fleet import ComposedFleet, docker
from tests.deploy.faults import HEALTH
from tests.deploy.greedy_streams import stream

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(3600)]


async def certificates(folder: Path) -> Path:
    """What `quire certs` makes, owned by the containers' user as docs/deployment.md says."""
    made = CliRunner().invoke(app, ["certs", str(folder)])
    assert made.exit_code == 0, made.output
    own = ("chown", "--recursive", "10001", *(f"/certs/{name}" for name in SERVICES))
    await docker("run", "--rm", "--user", "0", "--volume", f"{folder}:/certs", "quire-control", *own)
    return folder


async def test_services_with_certificates_serve_each_other_and_nobody_without(
    fleet: ComposedFleet, client: openai.AsyncOpenAI, tmp_path: Path
) -> None:
    in_clear = await stream(client, 0)
    folder = await certificates(tmp_path / "certs")
    await fleet.change(COMPOSE_FILE="compose.yaml:deploy/mtls.yaml", QUIRE_CERTS=str(folder))
    try:
        await fleet.ready()
        found = await stream(client, 0)
        assert (found.token_ids, found.error) == (in_clear.token_ids, "")
        for service in SERVICES[1:]:
            (name, *_) = await fleet.containers(service)
            await fleet.serving(name, HEALTH[service])
            check = ("python", "-m", "quire.health", HEALTH[service])
            with pytest.raises(subprocess.CalledProcessError) as refused:
                await docker("exec", "--env", "QUIRE_TLS_CERT=", name, *check)
            assert "UNAVAILABLE" in refused.value.stderr
    finally:
        await fleet.change(COMPOSE_FILE="compose.yaml")
        await fleet.ready()
