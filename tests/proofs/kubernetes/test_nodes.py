"""The control plane refuses what a cluster refuses, and so do the nodes of this proof."""

from collections.abc import Iterator

import pytest

from tests.proofs.kubernetes.api_server import ApiError, Object
from tests.proofs.kubernetes.control_plane import Cluster
from tests.proofs.kubernetes.kubelet import MISSING, UNHEALTHY
from tests.proofs.kubernetes.pod_counts import is_ready, ready_pods
from tests.support.eventually import eventually

NAMESPACE = "trial"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@pytest.fixture(scope="module", autouse=True)
def namespace(plane: Cluster) -> Iterator[None]:
    plane.kubectl("create", "namespace", NAMESPACE)
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    eventually(lambda: plane.api.items(account))
    yield
    plane.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def pod(name: str, image: str = "example:1", **spec: object) -> Object:
    container = {"name": "main", "image": image, **spec.pop("container", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/component": name}},
        "spec": {"containers": [container], **spec},
    }


def status(plane: Cluster, name: str) -> Object:
    return plane.api.get(f"{PODS}/{name}")["status"]


def waits_for(plane: Cluster, name: str) -> str:
    """Return why the container of a pod has not started, as soon as a reason is reported."""

    def reason() -> str:
        found = status(plane, name).get("containerStatuses", [{}])[0].get("state", {})
        shown = found.get("waiting", {}).get("reason", "")
        return "" if shown == "PodInitializing" else shown

    return eventually(reason)


def test_the_programs_report_their_version(plane: Cluster) -> None:
    assert plane.api.get("/version")["gitVersion"] == "v1.37.2"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"image": f"example:{MISSING}"}, "ImagePullBackOff"),
        ({"image": "registry.example/Board:1"}, "InvalidImageName"),
        ({"image": "ACCOUNT.example/board:1"}, "InvalidImageName"),
        (
            {"container": {"envFrom": [{"configMapRef": {"name": "absent"}}]}},
            "CreateContainerConfigError",
        ),
        (
            {
                "container": {
                    "env": [
                        {
                            "name": "PASSWORD",
                            "valueFrom": {"secretKeyRef": {"name": "absent", "key": "password"}},
                        }
                    ]
                }
            },
            "CreateContainerConfigError",
        ),
        ({"volumes": [{"name": "v", "secret": {"secretName": "absent"}}]}, "FailedMount"),
        (
            {"volumes": [{"name": "v", "csi": {"driver": "absent.example", "readOnly": True}}]},
            "FailedMount",
        ),
        ({"securityContext": {"runAsNonRoot": True}}, "CreateContainerConfigError"),
        (
            {"securityContext": {"runAsNonRoot": True, "runAsUser": 0}},
            "CreateContainerConfigError",
        ),
    ],
)
def test_a_pod_does_not_start(plane: Cluster, spec: Object, reason: str) -> None:
    plane.api.create(PODS, pod("refused", **spec))
    assert waits_for(plane, "refused") == reason
    assert not is_ready(plane.api.get(f"{PODS}/refused"))
    plane.kubectl("delete", "pod", "refused", "-n", NAMESPACE, "--timeout=30s")


def test_a_pod_starts_when_what_it_needs_is_there(plane: Cluster) -> None:
    volume = {"name": "v", "configMap": {"name": "late", "items": [{"key": "k", "path": "p"}]}}
    plane.api.create(PODS, pod("late", volumes=[volume]))
    assert waits_for(plane, "late") == "FailedMount"
    plane.kubectl("create", "configmap", "late", "--from-literal=k=v", "-n", NAMESPACE)
    plane.kubectl("wait", "--for=condition=Ready", "pod/late", "-n", NAMESPACE, "--timeout=20s")


def test_a_node_has_only_the_rights_of_a_kubelet(plane: Cluster) -> None:
    plane.kubectl("create", "secret", "generic", "other", "--from-literal=k=v", "-n", NAMESPACE)
    node = plane.nodes.names[0]
    done = plane.run(
        *("auth", "can-i", "get", "secret/other", "-n", NAMESPACE),
        *(f"--as=system:node:{node}", "--as-group=system:nodes"),
    )
    assert "no relationship found between node" in done.stdout


def test_a_pod_stays_for_its_grace_period_at_most(plane: Cluster) -> None:
    plane.api.create(PODS, pod("ending"))
    plane.kubectl("wait", "--for=condition=Ready", "pod/ending", "-n", NAMESPACE, "--timeout=20s")
    seen: list[str] = []

    def see(kind: str, found: Object) -> None:
        if found["metadata"]["name"] == "ending":
            seen.append("ends" if found["metadata"].get("deletionTimestamp") else kind)

    with plane.api.watch(PODS, see):
        plane.kubectl("delete", "pod", "ending", "-n", NAMESPACE, "--timeout=30s")
    assert seen[0] == "ADDED"
    assert seen[1:].count("ends") >= 2, "the pod ended at once"


def test_init_containers_run_first_and_a_job_completes(plane: Cluster) -> None:
    job = pod("job", restartPolicy="Never", initContainers=[{"name": "first", "image": "a:1"}])
    plane.api.create(PODS, job)
    eventually(lambda: status(plane, "job").get("phase") == "Succeeded")
    first, then = (
        status(plane, "job")["initContainerStatuses"],
        status(plane, "job")["containerStatuses"],
    )
    assert first[0]["state"]["terminated"]["exitCode"] == 0
    assert then[0]["state"]["terminated"]["exitCode"] == 0


def test_services_are_injected_unless_the_pod_refuses_them(plane: Cluster) -> None:
    plane.kubectl("create", "service", "clusterip", "kong", "--tcp=80:8000", "-n", NAMESPACE)
    for name, links in (("linked", True), ("unlinked", False)):
        created = plane.api.create(PODS, pod(name, enableServiceLinks=links))
        plane.kubectl(
            *("wait", "--for=condition=Ready", f"pod/{name}", "-n", NAMESPACE, "--timeout=20s")
        )
        injected = plane.nodes.started[created["metadata"]["uid"]].injected
        assert ("KONG_PORT" in injected) is links
        assert injected["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"


def test_a_rollout_below_its_replicas_is_seen(plane: Cluster) -> None:
    """The counts that the other tests rely on fall when pods are replaced before others serve."""
    labels = {"app.kubernetes.io/component": "careless"}
    container = {"name": "main", "image": "example:1"}
    plane.api.create(
        f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments",
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "careless"},
            "spec": {
                "replicas": 3,
                "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 2}},
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        },
    )
    rollout = ("rollout", "status", "deployment/careless", "-n", NAMESPACE, "--timeout=60s")
    plane.kubectl(*rollout)
    with ready_pods(plane, NAMESPACE) as counts:
        plane.kubectl("set", "image", "deployment/careless", "main=example:2", "-n", NAMESPACE)
        plane.kubectl(*rollout)
    assert counts.lowest()["careless"] == 1
    assert counts.images["careless"] == {"example:1", "example:2"}


def test_an_unhealthy_image_runs_and_is_never_ready(plane: Cluster) -> None:
    plane.api.create(PODS, pod("unhealthy", image=f"example:{UNHEALTHY}"))
    eventually(lambda: status(plane, "unhealthy").get("phase") == "Running")
    done = plane.run(
        *("wait", "--for=condition=Ready", "pod/unhealthy", "-n", NAMESPACE, "--timeout=2s")
    )
    assert done.returncode == 1


def test_strict_validation_refuses_an_unknown_field(plane: Cluster) -> None:
    with pytest.raises(ApiError) as refused:
        plane.api.request("POST", PODS, pod("x", imagine=True), fieldValidation="Strict")
    assert 'unknown field "spec.imagine"' in refused.value.message
