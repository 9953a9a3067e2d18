"""An overlay of deploy/k8s, applied to the control plane as the documentation says."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.proofs.kubernetes.api_server import Object
from tests.proofs.kubernetes.control_plane import Cluster
from tests.support.eventually import eventually
from tests.support.manifests import COMPONENT, NAMESPACE

SERVICES: Final = ("api", "flusher", "kong", "streamer")
"""The Deployments that serve; those of the stores of dev are not made to."""
APPLY: Final = ("apply", "--server-side", "--validate=strict", "-f", "-")
ROLLOUT_S: Final = 120
KINDS: Final = {
    "deployments": "/apis/apps/v1",
    "statefulsets": "/apis/apps/v1",
    "jobs": "/apis/batch/v1",
    "cronjobs": "/apis/batch/v1",
    "pods": "/api/v1",
    "services": "/api/v1",
    "serviceaccounts": "/api/v1",
    "configmaps": "/api/v1",
    "secrets": "/api/v1",
    "persistentvolumeclaims": "/api/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "horizontalpodautoscalers": "/apis/autoscaling/v2",
}
"""The kinds of objects that the tests read, and their groups."""


@dataclass
class Installation:
    """The objects of an overlay in the cluster."""

    cluster: Cluster
    overlay: str
    manifest: str

    def live(self, kind: str) -> list[Object]:
        """Return the objects of a kind as the API server stores them."""
        return self.cluster.api.items(path(kind))

    def names(self, kind: str) -> list[str]:
        """Return the names of the objects of a kind."""
        return sorted(found["metadata"]["name"] for found in self.live(kind))

    def get(self, kind: str, name: str) -> Object:
        """Return one object as the API server stores it."""
        return self.cluster.api.get(path(kind, name))

    def patch(self, kind: str, name: str, change: Object) -> Object:
        """Change one object."""
        return self.cluster.api.patch(path(kind, name), change)

    def pods(self, *components: str) -> list[Object]:
        """Return the pods of some components that are not about to end."""
        return [
            pod
            for pod in self.live("pods")
            if pod["metadata"]["labels"].get(COMPONENT) in components
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def apply(self, manifest: str = "") -> None:
        """Apply the manifest or a part of it; the server checks it and warns about nothing."""
        self.cluster.kubectl(*APPLY, stdin=manifest or self.manifest)

    def deployments(self, *names: str, image: str = "") -> str:
        """Return the part of the manifest that has some Deployments, with another image."""
        found = [
            each
            for each in yaml.safe_load_all(self.manifest)
            if each["kind"] == "Deployment" and each["metadata"]["name"] in names
        ]
        for deployment in found if image else ():
            for container in containers(deployment["spec"]["template"]["spec"]):
                container["image"] = image
        return yaml.safe_dump_all(found)

    def until_complete(self) -> None:
        """Wait until each Deployment and StatefulSet serves and each Job has completed."""
        for kind in ("deployments", "statefulsets"):
            for name in self.names(kind):
                self.until_rolled_out(kind, name)
        for name in self.names("jobs"):
            eventually(lambda name=name: self._is_complete(name), within_s=ROLLOUT_S)
        self.until_budgets_are_met()

    def until_rolled_out(self, kind: str, name: str) -> None:
        """Wait until all pods of a workload are of its newest revision and ready."""

        def rolled_out() -> bool:
            found = self.get(kind, name)
            wanted, status = found["spec"]["replicas"], found["status"]
            counts = [
                status.get(f"{state}eplicas", 0)
                for state in ("r", "updatedR", "readyR", "availableR")
            ]
            assert status.get("observedGeneration") == found["metadata"]["generation"], name
            assert counts == [wanted] * 4, (name, status)
            return True

        eventually(rolled_out, within_s=ROLLOUT_S, every_s=0.05)

    def _is_complete(self, job: str) -> bool:
        conditions = self.get("jobs", job)["status"].get("conditions", [])
        return any(each["type"] == "Complete" and each["status"] == "True" for each in conditions)

    def until_budgets_are_met(self) -> None:
        """Wait until the controller has counted the ready pods of each budget."""

        def met() -> bool:
            for budget in self.live("poddisruptionbudgets"):
                status = budget.get("status", {})
                message = (budget["metadata"]["name"], status)
                assert status.get("observedGeneration") == budget["metadata"]["generation"], message
                assert status["currentHealthy"] == status["expectedPods"] > 0, message
            return True

        eventually(met, within_s=ROLLOUT_S)

    def floors(self) -> dict[str, int]:
        """Return how many pods of each component its budget keeps ready."""
        return {
            budget["metadata"]["name"]: budget["status"]["desiredHealthy"]
            for budget in self.live("poddisruptionbudgets")
        }

    def remove(self) -> None:
        """Delete the namespace and wait until it no longer exists."""
        self.cluster.kubectl(
            "delete", "namespace", NAMESPACE, "--timeout=90s", "--ignore-not-found"
        )


def path(kind: str, name: str = "") -> str:
    """Return the path of the objects of a kind in the namespace, or of one of them."""
    folder = f"{KINDS[kind]}/namespaces/{NAMESPACE}/{kind}"
    return f"{folder}/{name}" if name else folder


def render(cluster: Cluster, folder: Path) -> str:
    """Return the objects of a folder of manifests as text."""
    return cluster.kubectl("kustomize", folder)


def containers(pod_spec: Object) -> Iterator[Object]:
    """Yield the containers of a pod, with those that run first."""
    yield from pod_spec.get("initContainers", [])
    yield from pod_spec["containers"]


def show(found: Any) -> str:
    """Return an object as text for the message of a failed test."""
    return json.dumps(found, indent=1)[:4000]
