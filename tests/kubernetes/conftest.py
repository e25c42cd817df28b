"""The rendered fleets: rendering takes a moment, so each is rendered once."""

import pytest

from tests.kubernetes.manifests import FLEETS, Fleet


@pytest.fixture(scope="session")
def rendered() -> dict[str, Fleet]:
    """Every kustomization by name."""
    return {name: Fleet(name) for name in (*FLEETS, "autoscaling")}


@pytest.fixture(params=FLEETS)
def fleet(request: pytest.FixtureRequest, rendered: dict[str, Fleet]) -> Fleet:
    """Each fleet that can be applied."""
    return rendered[request.param]
