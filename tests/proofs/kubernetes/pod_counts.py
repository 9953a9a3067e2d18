"""Counts of ready pods, from a watch: a state of a millisecond is counted too."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.proofs.kubernetes.api_server import Object
from tests.proofs.kubernetes.control_plane import Cluster
from tests.support.manifests import COMPONENT


def is_ready(pod: Object) -> bool:
    """Return whether a pod serves and is not about to end: what budgets and Deployments count."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = pod["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


class ReadyPods:
    """Which pods are ready, by component, and the fewest since the start."""

    def __init__(self) -> None:
        self._pods: dict[str, Object] = {}
        self._lock = threading.Lock()
        self._lowest: Counter[str] | None = None
        self.images: dict[str, set[str]] = {}
        """By component: the images of the pods that were ready at any time since the start."""

    def see(self, kind: str, pod: Object) -> None:
        """Count again after an event of the watch."""
        with self._lock:
            uid = pod["metadata"]["uid"]
            if kind == "DELETED":
                self._pods.pop(uid, None)
            else:
                self._pods[uid] = pod
            if self._lowest is not None:
                self._note()

    def begin(self) -> None:
        """Start to keep the lowest counts."""
        with self._lock:
            self._lowest = self._now()
            self._note()

    def lowest(self) -> Counter[str]:
        """Return the fewest ready pods since ``begin``, by component."""
        with self._lock:
            assert self._lowest is not None
            return Counter(self._lowest)

    def _note(self) -> None:
        assert self._lowest is not None
        current = self._now()
        for component in self._lowest:
            self._lowest[component] = min(self._lowest[component], current[component])
        for pod in self._pods.values():
            if is_ready(pod):
                name = pod["metadata"]["labels"].get(COMPONENT, "")
                images = {each["image"] for each in pod["spec"]["containers"]}
                self.images.setdefault(name, set()).update(images)

    def _now(self) -> Counter[str]:
        return Counter(
            pod["metadata"]["labels"].get(COMPONENT, "")
            for pod in self._pods.values()
            if is_ready(pod)
        )


@contextmanager
def ready_pods(cluster: Cluster, namespace: str) -> Iterator[ReadyPods]:
    """Count the ready pods of a namespace from here to the end of the block."""
    counts = ReadyPods()
    with cluster.api.watch(f"/api/v1/namespaces/{namespace}/pods", counts.see):
        counts.begin()
        yield counts
