"""Render the overlays of deploy/k8s, filled in, and read workloads from what they contain."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.repository import ROOT
from tests.support.tools import go_programs

Entity = dict[str, Any]

DEPLOY: Final = ROOT / "deploy"
MANIFESTS: Final = DEPLOY / "k8s"
NAMESPACE: Final = "scoreboard"
COMPONENT: Final = "app.kubernetes.io/component"
PLACEHOLDER: Final = "CHANGE-ME"

FILLED_IN: Final = {
    "REDIS_URL": "rediss://redis.example:6379/0",
    "DATABASE_URL": "postgresql://database.example:5432/scoreboard?sslmode=require",
    "COUNTERS_URL": "rediss://kong@counters.example:6379/0",
    "REDIS_NETWORK": "10.20.1.0/24",
    "DATABASE_NETWORK": "10.20.2.0/24",
    "COUNTERS_NETWORK": "10.20.3.0/24",
    "ACCOUNT": "123456789012",
    "AWS_REGION": "eu-central-1",
    "OWNER_SECRET": "rds!cluster-owner",
    "SCOREBOARD_VOUCHED_REDIS": "true",
    "SCOREBOARD_ACKNOWLEDGE": "committed",
    "SCOREBOARD_ISSUER": "https://login.example/",
    "SCOREBOARD_JWKS_URL": "https://login.example/keys",
    "SCOREBOARD_ORIGINS": "https://game.example",
    "SCOREBOARD_TRUSTED_HOPS": "10.244.0.0/16",
    "CERTIFICATE": "arn:aws:acm:eu-central-1:123456789012:certificate/0000",
}
"""What an installation on AWS fills in, by the name of the setting."""

COMPONENTS: Final = {
    "prod": ("keda", "monitoring"),
    "prod-hpa": ("hpa", "monitoring", "rotation"),
}
"""The two ways to run `prod`: as it is, and with the components that it names in comments."""

OVERLAYS: Final = ("dev", "dev-cluster", *COMPONENTS)

ADMIN_OVERLAYS: Final = ("dev-admin", "prod-admin")
"""`dev` and `prod` with the component `admin`."""


def renderer() -> Path:
    """Return kustomize, built once from its pinned module; without Go skip the test, in CI fail."""
    if shutil.which("go") is None:
        reason = "NOT RUN: Go is missing, which builds kustomize"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    programs = go_programs(ROOT / "tests/deploy/kustomize", ["sigs.k8s.io/kustomize/kustomize/v5"])
    return programs / "kustomize"


def render(folder: Path) -> list[Entity]:
    """Return the objects of a folder."""
    done = subprocess.run(
        [renderer(), "build", str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one is not None]


def copy_manifests(folder: Path) -> Path:
    """Copy the manifests as an installation has them; return the folder of the overlays.

    The passwords of `dev` are created, `prod` is filled in, `prod-hpa` has other components, and
    ADMIN_OVERLAYS have one more.
    """
    copied = shutil.copytree(
        DEPLOY, folder / "deploy", ignore=shutil.ignore_patterns("secrets", "__pycache__")
    )
    overlays = copied / "k8s/overlays"
    subprocess.run(
        [sys.executable, str(copied / "docker/bootstrap.py")],
        env={**os.environ, "SECRETS_ROOT": str(overlays / "dev/secrets")},
        check=True,
        capture_output=True,
        timeout=60,
    )
    fill_in(overlays / "prod")
    other = shutil.copytree(overlays / "prod", overlays / "prod-hpa")
    choose(other / "kustomization.yaml", COMPONENTS["prod-hpa"])
    for name in ADMIN_OVERLAYS:
        file = shutil.copytree(overlays / name.removesuffix("-admin"), overlays / name)
        add_component(file / "kustomization.yaml", "admin")
    return overlays


def add_component(kustomization: Path, name: str) -> None:
    """Add a component before those that an overlay has."""
    text = kustomization.read_text()
    assert text.count("\ncomponents:\n") == 1
    listed = f"\ncomponents:\n- ../../components/{name}\n"
    kustomization.write_text(text.replace("\ncomponents:\n", listed))


def fill_in(overlay: Path) -> None:
    """Replace every placeholder of an overlay; an unknown setting fails."""
    settings = overlay / "settings.env"
    lines = [
        f"{line.partition('=')[0]}={FILLED_IN[line.partition('=')[0]]}"
        if PLACEHOLDER in line and not line.startswith("#")
        else line
        for line in settings.read_text().splitlines()
    ]
    settings.write_text("\n".join(lines) + "\n")
    for file in overlay.glob("*.yaml"):
        text = file.read_text().replace(f"sha256:{PLACEHOLDER}", f"sha256:{'0' * 64}")
        file.write_text(text.replace(PLACEHOLDER, "registry.example"))


def choose(kustomization: Path, components: tuple[str, ...]) -> None:
    """Replace the components of an overlay."""
    text = kustomization.read_text()
    for name in components:
        assert f"../../components/{name}" in text, name
    listed = "\n".join(f"- ../../components/{name}" for name in components)
    text = re.sub(
        r"^components:\n(?:[-#].*\n)+", f"components:\n{listed}\n", text, flags=re.MULTILINE
    )
    kustomization.write_text(text)


@dataclass(frozen=True)
class Container:
    """A container, with its pod and the values of its environment."""

    component: str
    workload: Entity
    pod: Entity
    spec: Entity
    is_init: bool
    environment: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its name in the pod."""
        return self.spec["name"]

    @property
    def image(self) -> str:
        """The name of its image, without registry, tag and digest."""
        return re.split("[:@]", self.spec["image"].rpartition("/")[2])[0]

    @property
    def command(self) -> list[str]:
        """What it runs."""
        return [*self.spec.get("command", []), *self.spec.get("args", [])]

    @property
    def ports(self) -> dict[str, int]:
        """Its ports by name."""
        return {one["name"]: one["containerPort"] for one in self.spec.get("ports", [])}

    def mounts(self) -> dict[str, Entity]:
        """Return its volumes by the path at which they are mounted."""
        claims = self.workload["spec"].get("volumeClaimTemplates", [])
        volumes = {one["metadata"]["name"]: one for one in claims}
        volumes |= {one["name"]: one for one in self.pod.get("volumes", [])}
        return {one["mountPath"]: volumes[one["name"]] for one in self.spec.get("volumeMounts", [])}


class Installation:
    """The objects of a rendered overlay."""

    def __init__(self, documents: list[Entity]) -> None:
        self.documents = documents

    def of(self, *kinds: str) -> list[Entity]:
        """Return the objects of some kinds."""
        return [one for one in self.documents if one["kind"] in kinds]

    def get(self, kind: str, name: str) -> Entity:
        """Return one object."""
        (found,) = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        return found

    @cached_property
    def workloads(self) -> list[Entity]:
        """The objects that make pods."""
        return self.of("Deployment", "StatefulSet", "Job", "CronJob")

    @cached_property
    def containers(self) -> list[Container]:
        """Every container of every workload."""
        return list(self._containers())

    def container(self, workload: str, name: str = "") -> Container:
        """Return a container by its own name, or that of its workload."""
        (found,) = [
            one
            for one in self.containers
            if one.workload["metadata"]["name"] == workload and one.name == (name or workload)
        ]
        return found

    def _containers(self) -> Iterator[Container]:
        for workload in self.workloads:
            template = template_of(workload)
            pod = template["spec"]
            for kind in ("initContainers", "containers"):
                for spec in pod.get(kind, []):
                    yield Container(
                        template["metadata"]["labels"][COMPONENT],
                        workload,
                        pod,
                        spec,
                        kind == "initContainers",
                        self._environment(spec),
                    )

    def _environment(self, spec: Entity) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in spec.get("envFrom", []):
            found |= self.get("ConfigMap", source["configMapRef"]["name"])["data"]
        for one in spec.get("env", []):
            found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda m: found[m[1]], one["value"])
        return found


def template_of(workload: Entity) -> Entity:
    """Return the template of a workload's pods."""
    spec = workload["spec"]
    return (spec["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else spec)["template"]


def settings_to_fill_in() -> list[str]:
    """Return the names of the settings that `prod` leaves to the installation."""
    text = (MANIFESTS / "overlays/prod/settings.env").read_text()
    return re.findall(rf"^(\w+)=.*{PLACEHOLDER}", text, re.MULTILINE)
