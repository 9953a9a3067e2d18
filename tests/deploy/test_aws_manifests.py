"""The Kubernetes manifests of deploy/aws: a schema of the fields they use, and what they refer to.

The schemas follow the reference of both projects; no field outside of them is allowed.
"""

import re
from typing import Any

import jsonschema
import pytest
import yaml

from scoreboard.rotation.kinds import GRACE_TIMES, READ_S, SECRETS
from scoreboard.runtime.settings import Secret, Settings
from tests.deploy.compose import ROOT
from tests.support.fakes.stack import load_template

AWS = ROOT / "deploy" / "aws"
SERVICES = {"api", "streamer", "flusher", "operator", "kong"}
FILE_S = 5
"""The longest time until a service reads a changed file."""

KUBELET_S = 120
"""The longest time until the kubelet has updated the files of a Secret, with its defaults."""


def mapping(**fields: Any) -> dict[str, Any]:
    """Return the schema of an object with exactly these fields."""
    return {
        "type": "object",
        "properties": fields,
        "required": sorted(fields),
        "additionalProperties": False,
    }


def fixed(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


NAME = {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,62}$"}
FILE = {"type": "string", "pattern": "^[a-z0-9._-]+$"}
SECRET = {"type": "string", "pattern": "^scoreboard/production/[a-z]+/[a-z]+$"}
REGION = {"type": "string", "pattern": "^[a-z]{2}-[a-z]+-[0-9]$"}
SCHEMAS = {
    "SecretStore": mapping(
        apiVersion=fixed("external-secrets.io/v1"),
        kind=fixed("SecretStore"),
        metadata=mapping(name=NAME),
        spec=mapping(
            provider=mapping(
                aws=mapping(
                    service=fixed("SecretsManager"),
                    region=REGION,
                    auth=mapping(jwt=mapping(serviceAccountRef=mapping(name=NAME))),
                )
            )
        ),
    ),
    "ExternalSecret": mapping(
        apiVersion=fixed("external-secrets.io/v1"),
        kind=fixed("ExternalSecret"),
        metadata=mapping(name=NAME),
        spec=mapping(
            refreshInterval={"type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"},
            secretStoreRef=mapping(kind=fixed("SecretStore", "ClusterSecretStore"), name=NAME),
            target=mapping(
                name=NAME,
                creationPolicy=fixed("Owner", "Orphan", "Merge", "None"),
                deletionPolicy=fixed("Retain", "Delete", "Merge"),
            ),
            data={
                "type": "array",
                "minItems": 1,
                "items": mapping(
                    secretKey=FILE, remoteRef=mapping(key=SECRET, version=fixed("AWSCURRENT"))
                ),
            },
        ),
    ),
    "SecretProviderClass": mapping(
        apiVersion=fixed("secrets-store.csi.x-k8s.io/v1"),
        kind=fixed("SecretProviderClass"),
        metadata=mapping(name=NAME),
        spec=mapping(
            provider=fixed("aws"), parameters=mapping(region=REGION, objects={"type": "string"})
        ),
    ),
}
OBJECTS = {
    "type": "array",
    "minItems": 1,
    "items": mapping(
        objectName=SECRET,
        objectType=fixed("secretsmanager"),
        objectVersionLabel=fixed("AWSCURRENT"),
        objectAlias=FILE,
    ),
}


def documents(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((AWS / file).read_text()))


@pytest.mark.parametrize("file", ["external-secrets.yaml", "secrets-store-csi.yaml"])
def test_manifests_have_only_known_fields(file: str) -> None:
    found = documents(file)
    for one in found:
        jsonschema.validate(one, SCHEMAS[one["kind"]])
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert len(set(names)) == len(names)


def test_the_schemas_refuse_a_field_that_is_misspelt() -> None:
    (one, *_) = [one for one in documents("external-secrets.yaml") if "data" in one["spec"]]
    one["spec"]["refreshinterval"] = one["spec"].pop("refreshInterval")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(one, SCHEMAS["ExternalSecret"])


def secrets_of(service: str) -> dict[str, str]:
    """Return the files of a service and their secrets, as the stack has them."""
    names = [name for group in SECRETS.values() for name in group]
    return {
        name.split("/")[1]: f"scoreboard/production/{name}"
        for name in names
        if name.startswith(f"{service}/")
    }


def test_each_external_secret_has_the_secrets_of_its_service_only() -> None:
    found = documents("external-secrets.yaml")
    stores = {one["metadata"]["name"]: one for one in found if one["kind"] == "SecretStore"}
    wanted = {one["metadata"]["name"]: one for one in found if one["kind"] == "ExternalSecret"}
    assert wanted.keys() == stores.keys() == {f"scoreboard-{service}" for service in SERVICES}
    for service in SERVICES:
        name = f"scoreboard-{service}"
        spec = wanted[name]["spec"]
        assert spec["secretStoreRef"]["name"] == spec["target"]["name"] == name
        account = stores[name]["spec"]["provider"]["aws"]["auth"]["jwt"]["serviceAccountRef"]
        assert account["name"] == name
        files = {one["secretKey"]: one["remoteRef"]["key"] for one in spec["data"]}
        assert files == secrets_of(service)


def test_each_provider_class_has_the_secrets_of_its_service_only() -> None:
    found = {one["metadata"]["name"]: one for one in documents("secrets-store-csi.yaml")}
    assert found.keys() == {f"scoreboard-{service}" for service in SERVICES}
    for service in SERVICES:
        objects = yaml.safe_load(found[f"scoreboard-{service}"]["spec"]["parameters"]["objects"])
        jsonschema.validate(objects, OBJECTS)
        files = {one["objectAlias"]: one["objectName"] for one in objects}
        assert files == secrets_of(service)


def test_files_are_updated_before_previous_versions_are_retired() -> None:
    grace_s = GRACE_TIMES * Settings(redis_url=Secret("")).secrets_refresh_s + READ_S
    units = {"h": 3600, "m": 60, "s": 1}
    for one in documents("external-secrets.yaml"):
        if one["kind"] == "ExternalSecret":
            text = one["spec"]["refreshInterval"]
            interval_s = sum(int(n) * units[u] for n, u in re.findall(r"(\d+)([hms])", text))
            assert 0 < interval_s + KUBELET_S + FILE_S < grace_s
    head = (AWS / "secrets-store-csi.yaml").read_text()
    (poll,) = re.findall(r"rotationPollInterval=(\d+)s", head)
    assert int(poll) + FILE_S < grace_s


def test_every_service_has_a_policy_in_the_stack() -> None:
    outputs = load_template()["Outputs"]
    assert {f"{service.capitalize()}PolicyArn" for service in SERVICES} <= outputs.keys()
