"""Storage of the cluster: a class whose volumes are made as soon as a claim asks for one."""

from typing import Final

from tests.proofs.kubernetes.api_server import Object
from tests.proofs.kubernetes.kubelet import AsyncApi

CLASS: Final = "proof"
CLASSES: Final = "/apis/storage.k8s.io/v1/storageclasses"
VOLUMES: Final = "/api/v1/persistentvolumes"
STORAGE_CLASS: Final[Object] = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {
        "name": CLASS,
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": "scoreboard.invalid/proof",
    "volumeBindingMode": "Immediate",
    "reclaimPolicy": "Delete",
}


async def provision(api: AsyncApi) -> None:
    """Create a volume for each claim and delete it with the claim, as a provisioner does."""
    async with api:
        async for kind, claim in api.watch("/api/v1/persistentvolumeclaims"):
            name = f"volume-{claim['metadata']['uid']}"
            spec = claim["spec"]
            if kind == "DELETED":
                await api.send("DELETE", f"{VOLUMES}/{name}")
            elif spec.get("storageClassName") == CLASS and not spec.get("volumeName"):
                await api.send("POST", VOLUMES, _volume(name, claim))


def _volume(name: str, claim: Object) -> Object:
    """Return a volume for one claim."""
    metadata, spec = claim["metadata"], claim["spec"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": spec["resources"]["requests"],
            "accessModes": spec["accessModes"],
            "storageClassName": CLASS,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": "/nonexistent"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }
