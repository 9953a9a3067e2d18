"""One control plane for all tests of this folder, and the overlays on it, one after another."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.proofs.kubernetes import definitions, programs
from tests.proofs.kubernetes.control_plane import Cluster, cluster
from tests.proofs.kubernetes.installation import Installation, render
from tests.support.manifests import MANIFESTS, OVERLAYS, copy_manifests


@pytest.fixture(scope="session")
def plane() -> Iterator[Cluster]:
    """Run a control plane with the resource definitions that overlays use."""
    programs.etcd()
    programs.kubernetes()
    wanted = definitions.files()
    with (
        TemporaryDirectory(prefix="scoreboard-control-plane-") as folder,
        cluster(Path(folder)) as running,
    ):
        for definition in wanted:
            running.kubectl("create", "-f", definition)
        running.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield running


@pytest.fixture(scope="session")
def filled_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the overlays that are ready to be applied."""
    return copy_manifests(tmp_path_factory.mktemp("manifests"))


@pytest.fixture(scope="session", params=OVERLAYS)
def installed(
    request: pytest.FixtureRequest, plane: Cluster, filled_in: Path
) -> Iterator[Installation]:
    """Apply an overlay; its namespace is deleted at the end."""
    overlay = request.param
    installation = Installation(plane, overlay, render(plane, filled_in / overlay))
    try:
        installation.apply()
        installation.until_complete()
        yield installation
    finally:
        installation.remove()
    assert not plane.nodes.failures, plane.nodes.failures


@pytest.fixture(scope="session")
def template(plane: Cluster) -> str:
    """Return the objects of the overlay prod as it is in the repository."""
    return render(plane, MANIFESTS / "overlays/prod")
