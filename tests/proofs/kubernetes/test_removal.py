"""An installation is removed with its namespace.

The name of this file is the last one, so an overlay is removed after its other tests.
"""

from tests.proofs.kubernetes.api_server import Object
from tests.proofs.kubernetes.installation import NAMESPACE, Installation

CLUSTER_KINDS = {
    "persistentvolumes": "/api/v1",
    "clusterroles": "/apis/rbac.authorization.k8s.io/v1",
    "clusterrolebindings": "/apis/rbac.authorization.k8s.io/v1",
    "priorityclasses": "/apis/scheduling.k8s.io/v1",
    "storageclasses": "/apis/storage.k8s.io/v1",
    "validatingwebhookconfigurations": "/apis/admissionregistration.k8s.io/v1",
    "mutatingwebhookconfigurations": "/apis/admissionregistration.k8s.io/v1",
}


def belongs(found: Object) -> bool:
    """Return whether an object of the cluster was made for the installation."""
    labels = found["metadata"].get("labels", {})
    claim = found.get("spec", {}).get("claimRef", {})
    return "scoreboard" in labels.get("app.kubernetes.io/part-of", "") or (
        claim.get("namespace") == NAMESPACE
    )


def test_nothing_is_left_when_the_namespace_is_deleted(installed: Installation) -> None:
    api = installed.cluster.api
    installed.remove()
    namespaces = {found["metadata"]["name"] for found in api.items("/api/v1/namespaces")}
    assert NAMESPACE not in namespaces
    assert not api.items(f"/api/v1/namespaces/{NAMESPACE}/pods")
    left = [
        f"{kind}/{found['metadata']['name']}"
        for kind, group in CLUSTER_KINDS.items()
        for found in api.items(f"{group}/{kind}")
        if belongs(found)
    ]
    assert not left
