"""What the images install is locked by hashes, at the versions of constraints.txt, and nothing is forgotten."""

import re
import tomllib

from tests.support.server import REPOSITORY
from tools.lock_images import BY_MACHINE, LOCKS, entries

CONTROL, WORKER = (entries((LOCKS / f"{name}.txt").read_text()) for name in ("control", "worker"))


def normal(name: str) -> str:
    """As package indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normal(name): version for name, version in pinned}


def asked_for(requirements: list[str]) -> set[str]:
    return {normal(re.match(r"[\w.-]+", item)[0]) for item in requirements}  # type: ignore[index]


def test_every_file_that_may_be_installed_has_its_hash() -> None:
    for entry in (*CONTROL.values(), *WORKER.values()):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_versions_are_those_of_the_constraints() -> None:
    pinned = constraints()
    for name, entry in (CONTROL | WORKER).items():
        (version,) = re.findall(r"==([^\s;]+)", entry.splitlines()[0])
        is_elsewhere = " ; " in entry  # for other systems, or older releases of Python
        # setuptools is in no virtual environment's list of its own packages.
        assert pinned.get(normal(name), version) == version, name
        assert normal(name) in pinned or name == "setuptools" or is_elsewhere, name


def test_all_that_the_package_asks_for_is_locked_but_what_differs_by_machine() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    control, worker = set(map(normal, CONTROL)), set(map(normal, WORKER))
    assert asked_for(project["dependencies"]) <= control
    rest = asked_for(project["optional-dependencies"]["worker"]) - control - worker
    assert rest == {"torch"}
    assert all(map(BY_MACHINE.match, rest))
    assert rest <= constraints().keys()


def test_images_install_with_hashes_whatever_is_not_torch() -> None:
    dockerfile = (REPOSITORY / "deploy" / "Dockerfile").read_text().replace("\\\n", "")
    installs = re.findall(r"pip --python /venv/bin/python install .*?(?=&&|\n)", dockerfile)
    assert len(installs) == 3
    assert [("--require-hashes" in line) for line in installs] == [True, True, False]
    assert "--constraint constraints.txt --requirement torch.txt" in re.sub(r" +", " ", installs[-1])
