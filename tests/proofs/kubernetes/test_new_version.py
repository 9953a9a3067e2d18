"""The commands of the how-to page upgrade an installation without an interruption."""

import shutil
from pathlib import Path

import pytest

from tests.proofs.kubernetes.api_server import Object
from tests.proofs.kubernetes.how_to import commands_of, run
from tests.proofs.kubernetes.installation import APPLY, SERVICES, Installation, path, render
from tests.proofs.kubernetes.pod_counts import ready_pods
from tests.support.manifests import NAMESPACE

NEW = f"sha256:{'1' * 64}"


@pytest.fixture
def upgraded(installed: Installation, filled_in: Path, tmp_path: Path) -> Path:
    """Return a repository with new images and a changed setting in the overlay."""
    shutil.copytree(filled_in.parents[1], tmp_path / "deploy")
    overlay = tmp_path / "deploy/k8s/overlays" / installed.overlay
    kustomization = overlay / "kustomization.yaml"
    text = kustomization.read_text()
    assert f"sha256:{'0' * 64}" in text
    kustomization.write_text(text.replace(f"sha256:{'0' * 64}", NEW))
    with (overlay / "settings.env").open("a") as settings:
        settings.write("SCOREBOARD_LOG_LEVEL=debug\n")
    return tmp_path


@pytest.mark.parametrize("installed", ["prod-hpa"], indirect=True)
def test_the_documented_commands_upgrade_without_an_interruption(
    installed: Installation, upgraded: Path
) -> None:
    installed.until_complete()
    cluster = installed.cluster
    before = {name: installed.get("deployments", name)["spec"]["replicas"] for name in SERVICES}
    fewest = dict(before)

    def see(kind: str, deployment: Object) -> None:
        name = deployment["metadata"]["name"]
        fewest[name] = min(fewest[name], deployment["spec"]["replicas"])

    commands = commands_of("Upgrade").replace("overlays/prod", f"overlays/{installed.overlay}")
    with (
        ready_pods(cluster, NAMESPACE) as counts,
        cluster.api.watch(path("deployments"), see),
    ):
        run(cluster, commands, upgraded)
        installed.until_complete()
    lowest = counts.lowest()
    assert {name: lowest[name] for name in SERVICES} == before
    assert fewest == before, "the manifest reset the replicas of an autoscaler"
    for pod in installed.pods(*SERVICES, "migrate", "operator"):
        for container in pod["spec"]["containers"]:
            assert container["image"].endswith(NEW), pod["metadata"]["name"]
        variables = cluster.nodes.started[pod["metadata"]["uid"]].environment
        for name, found in variables.items():
            assert name == "kong" or found["SCOREBOARD_LOG_LEVEL"] == "debug", name
    installed.manifest = render(cluster, upgraded / "deploy/k8s/overlays" / installed.overlay)


@pytest.mark.parametrize("installed", ["prod-hpa"], indirect=True)
def test_jobs_that_remain_are_not_changed(installed: Installation) -> None:
    """This is why the page removes them first."""
    installed.until_complete()
    other = installed.manifest.replace("registry.example/scoreboard@", "registry.example/other@")
    assert other != installed.manifest
    done = installed.cluster.run(*APPLY, "--dry-run=server", stdin=other)
    assert done.returncode == 1
    assert "field is immutable" in done.stderr


@pytest.mark.parametrize("installed", ["prod-hpa"], indirect=True)
def test_an_apply_after_an_undo_is_forced(installed: Installation) -> None:
    """The fields that `rollout undo` sets are its own, as the page says."""
    installed.until_complete()
    workload = ("deployment/api", "-n", NAMESPACE)
    other, third = (f"registry.example/scoreboard:{name}" for name in ("other", "third"))
    installed.apply(installed.deployments("api", image=other))
    installed.until_rolled_out("deployments", "api")
    installed.cluster.kubectl("rollout", "undo", *workload)
    installed.until_rolled_out("deployments", "api")
    assert other not in str(installed.get("deployments", "api")["spec"])
    changed = installed.deployments("api", image=third)
    refused = installed.cluster.run(*APPLY, stdin=changed)
    assert refused.returncode == 1
    assert "conflict" in refused.stderr
    installed.cluster.kubectl(*APPLY, "--force-conflicts", stdin=changed)
    installed.apply(installed.deployments("api"))
    installed.until_complete()
