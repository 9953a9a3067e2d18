"""What the containers get from the cluster: settings, secrets, identities and nothing else."""

import re

import jwt
import pytest

from scoreboard.runtime import settings
from tests.proofs.kubernetes.installation import NAMESPACE, SERVICES, Installation, path
from tests.proofs.kubernetes.kubelet import Started
from tests.support.eventually import eventually
from tests.support.manifests import COMPONENT

OWN_IMAGE = "scoreboard"
WITHOUT_SETTINGS = "form-cluster"
"""It runs a script that reads none of our settings."""
AUDIENCE = "sts.amazonaws.com"


def started(installation: Installation) -> list[Started]:
    """Return how the pods that exist were started."""
    installation.until_complete()
    nodes = installation.cluster.nodes
    return [nodes.started[pod["metadata"]["uid"]] for pod in installation.live("pods")]


def test_no_service_is_injected(installed: Installation) -> None:
    """A Service named kong would set KONG_PORT, which Kong reads as a setting."""
    for pod in started(installed):
        assert {name.partition("_")[0] for name in pod.injected} == {"KUBERNETES"}, pod.pod[
            "metadata"
        ]["name"]


def test_every_reference_in_the_environment_is_resolved(installed: Installation) -> None:
    for pod in started(installed):
        for container, variables in pod.environment.items():
            unresolved = {key: text for key, text in variables.items() if "$(" in text}
            assert not unresolved, (pod.pod["metadata"]["name"], container)


def test_the_settings_of_every_container_are_valid(installed: Installation) -> None:
    loaded = 0
    for pod in started(installed):
        for container in [
            *pod.pod["spec"].get("initContainers", []),
            *pod.pod["spec"]["containers"],
        ]:
            is_ours = re.split("[:@]", container["image"].rpartition("/")[2])[0] == OWN_IMAGE
            if is_ours and container["name"] != WITHOUT_SETTINGS:
                settings.load({**pod.injected, **pod.environment[container["name"]]})
                loaded += 1
    assert loaded >= 4


def test_no_pod_can_use_the_api_of_the_cluster(installed: Installation) -> None:
    for pod in started(installed):
        # A token without an audience, or with that of the API server, is one for its API.
        assert "" not in pod.tokens, pod.pod["metadata"]["name"]
        for mounted in pod.pod["spec"].get("volumes", []):
            assert not mounted["name"].startswith("kube-api-access"), pod.pod["metadata"]["name"]
    # Every account may read public facts, such as the versions of the API.
    anyone = rights_of(installed, "of-no-pod")
    for name in installed.names("serviceaccounts"):
        assert rights_of(installed, name) == anyone, name


def rights_of(installation: Installation, account: str) -> str:
    """Return what an account may do in the namespace."""
    return installation.cluster.kubectl(
        *("auth", "can-i", "--list", "--no-headers", "-n", NAMESPACE),
        f"--as=system:serviceaccount:{NAMESPACE}:{account}",
    )


@pytest.mark.parametrize("installed", ["prod"], indirect=True)
def test_each_component_has_an_account_of_its_own(installed: Installation) -> None:
    components: dict[str, set[str]] = {}
    for pod in started(installed):
        account = pod.pod["spec"]["serviceAccountName"]
        component = pod.pod["metadata"]["labels"]["app.kubernetes.io/component"]
        components.setdefault(account, set()).add(component)
    shared = {account: users for account, users in components.items() if len(users) > 1}
    assert not shared
    assert "default" not in components


@pytest.mark.parametrize("installed", ["prod-hpa"], indirect=True)
def test_accounts_that_read_secrets_have_a_role_on_aws(installed: Installation) -> None:
    roles: dict[str, str] = {}
    used = {pod["spec"]["serviceAccountName"] for pod in installed.live("pods")}
    for account in installed.live("serviceaccounts"):
        annotations = account["metadata"].get("annotations", {})
        if role := annotations.get("eks.amazonaws.com/role-arn"):
            roles[account["metadata"]["name"]] = role
    assert used <= set(roles)
    assert all(role.startswith("arn:aws:iam::") for role in roles.values()), roles
    assert len(set(roles.values())) == len(roles), "two accounts share a role"


@pytest.mark.parametrize("installed", ["prod-hpa"], indirect=True)
@pytest.mark.parametrize("name", SERVICES)
def test_the_identity_webhook_of_eks_can_give_a_pod_its_token(
    installed: Installation, name: str
) -> None:
    """The webhook adds a volume to each pod whose account has a role; here the test does it."""
    installed.until_complete()
    spec = installed.get("deployments", name)["spec"]["template"]["spec"]
    token = {"audience": AUDIENCE, "expirationSeconds": 86400, "path": "token"}
    volume = {"name": "aws-iam-token", "projected": {"sources": [{"serviceAccountToken": token}]}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"identity-{name}", "labels": {COMPONENT: "identity"}},
        "spec": {**spec, "volumes": [*spec["volumes"], volume]},
    }
    created = installed.cluster.api.create(path("pods"), pod)
    uid, nodes = created["metadata"]["uid"], installed.cluster.nodes
    try:
        tokens = eventually(lambda: uid in nodes.started and nodes.started[uid].tokens)
    finally:
        installed.cluster.api.delete(path("pods", pod["metadata"]["name"]))
    claims = jwt.decode(tokens[AUDIENCE], options={"verify_signature": False})
    assert claims["aud"] == [AUDIENCE]
    assert claims["sub"] == f"system:serviceaccount:{NAMESPACE}:scoreboard-{name}"
