"""The launcher starts real processes, restarts the dead with a word, and leaves nothing behind."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from quire.launcher import Launcher, LaunchError, ServiceCommand

LIVES = """
import os, signal, sys
from pathlib import Path
pids = Path(os.environ["PIDS"]); log = pids / "order"
signal.signal(signal.SIGTERM, lambda *_: (log.open("a").write("{name} "), sys.exit(0)))
(pids / "{name}.tmp").write_text(str(os.getpid())); (pids / "{name}.tmp").rename(pids / "{name}.pid")
signal.pause()
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ServiceCommand]:
    """Makes a module of that name which the launcher can run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PIDS", str(tmp_path))

    def make(name: str, program: str = LIVES) -> ServiceCommand:
        (tmp_path / f"{name}.py").write_text(program.replace("{name}", name))
        return ServiceCommand(name, [])

    return make


async def pid_of(tmp_path: Path, name: str, other_than: int = 0) -> int:
    while True:
        path = tmp_path / f"{name}.pid"
        if path.exists() and (pid := int(path.read_text())) != other_than:
            return pid
        await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_all_stop_in_order_when_the_launcher_is_cancelled(tmp_path: Path, service) -> None:
    launcher = Launcher([service("front_x"), service("back_x")], lambda _: None)
    ready = asyncio.Event()

    async def both_up() -> None:
        await pid_of(tmp_path, "front_x")
        await pid_of(tmp_path, "back_x")

    running = asyncio.create_task(launcher.run(both_up, ready.set))
    await ready.wait()
    pids = [await pid_of(tmp_path, name) for name in ("front_x", "back_x")]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not any(is_alive(pid) for pid in pids)
    assert (tmp_path / "order").read_text().split() == ["front_x", "back_x"]


async def test_a_killed_service_is_started_again_and_the_launcher_says_so(tmp_path: Path, service) -> None:
    said: list[str] = []
    launcher = Launcher([service("worker_x")], said.append)
    ready = asyncio.Event()

    async def up() -> None:
        await pid_of(tmp_path, "worker_x")

    running = asyncio.create_task(launcher.run(up, ready.set))
    await ready.wait()
    first = await pid_of(tmp_path, "worker_x")
    os.kill(first, signal.SIGKILL)
    second = await pid_of(tmp_path, "worker_x", other_than=first)
    assert said == ["worker_x was killed by SIGKILL; starting it again"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not is_alive(second)


async def test_a_death_before_readiness_ends_the_launch_and_the_others(tmp_path: Path, service) -> None:
    commands = [service("front_y"), service("torn_y", "raise SystemExit(3)")]
    with pytest.raises(LaunchError, match="torn_y ended with status 3 before the server was ready"):
        await Launcher(commands, lambda _: None).run(asyncio.Event().wait, lambda: None)
    path = tmp_path / "front_y.pid"
    assert not path.exists() or not is_alive(int(path.read_text()))


async def test_a_service_that_keeps_dying_ends_everything(service) -> None:
    said: list[str] = []

    async def at_once() -> None:
        pass

    with pytest.raises(LaunchError, match="giving up"):
        await Launcher([service("weak_z", "raise SystemExit(7)")], said.append).run(at_once, lambda: None)
    assert len(said) == 4


async def test_secrets_travel_in_the_environment_only(tmp_path: Path, service, monkeypatch) -> None:
    monkeypatch.setenv("QUIRE_OTHER", "not for children")
    command = service(
        "secret_x",
        "import os, sys; from pathlib import Path\n"
        "seen = [*map(os.environ.get, ('QUIRE_API_KEY', 'QUIRE_OTHER')), 'sk-1' in ' '.join(sys.argv)]\n"
        "(Path(os.environ['PIDS']) / 'seen').write_text(repr(seen)); raise SystemExit(1)",
    )
    command = ServiceCommand(command.name, [], {"QUIRE_API_KEY": "sk-1"})
    with pytest.raises(LaunchError):
        await Launcher([command], lambda _: None).run(asyncio.Event().wait, lambda: None)
    assert (tmp_path / "seen").read_text() == "['sk-1', None, False]"
