"""The stack of deploy/aws/secrets.yaml: its template resolved, its secrets in a fake AWS.

The fake AWS knows CloudFormation, but not the resources for secrets, so this creates them.
"""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).parents[3] / "deploy" / "aws" / "secrets.yaml"
ACCOUNT, REGION = "123456789012", "eu-central-1"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/00000000-0000-4000-8000-000000000001"
_PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::URLSuffix": "amazonaws.com",
}
_NO_VALUE = object()


class _Loader(yaml.SafeLoader):
    """Reads the short forms of CloudFormation's functions."""


def _function(loader: _Loader, tag: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.SequenceNode):
        return {f"!{tag}": loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.ScalarNode)
    return {f"!{tag}": loader.construct_scalar(node)}


_Loader.add_multi_constructor("!", _function)


def load_template() -> dict[str, Any]:
    """Return the template; ``!Ref X`` is ``{"!Ref": "X"}``."""
    return yaml.load(TEMPLATE.read_text(), _Loader)  # a safe loader


class Stack:
    """The resources of the template for some parameters; ``client`` is of Secrets Manager."""

    def __init__(self, client: Any, **parameters: str) -> None:
        self.client = client
        template = load_template()
        defaults = {n: p["Default"] for n, p in template["Parameters"].items() if "Default" in p}
        self._values = {**_PSEUDO, **defaults, **parameters}
        missing = template["Parameters"].keys() - self._values.keys()
        self._values |= dict.fromkeys(missing, "unused")
        self._conditions = template["Conditions"]
        self._arns: dict[str, str] = {}
        self._raw = template["Resources"]
        self.secrets = {}
        for name in self._of_type("AWS::SecretsManager::Secret"):
            self.secrets[self.properties(name)["Name"]] = self._arns[name] = self._create(name)

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the properties of the resources of a type whose condition is met."""
        return {name: self.properties(name) for name in self._of_type(kind)}

    def properties(self, name: str) -> dict[str, Any]:
        """Return the resolved properties of a resource."""
        return self.resolve(self._raw[name]["Properties"])

    def resolve(self, value: Any) -> Any:  # noqa: PLR0911
        """Resolve the functions in a value."""
        if isinstance(value, list):
            return [found for one in value if (found := self.resolve(one)) is not _NO_VALUE]
        if not isinstance(value, dict):
            return value
        match value:
            case {"!Ref": "AWS::NoValue"}:
                return _NO_VALUE
            case {"!Ref": name}:
                return self._ref(name)
            case {"!Sub": text}:
                return re.sub(r"\$\{([\w:]+)\}", lambda found: str(self._ref(found[1])), text)
            case {"!GetAtt": text}:
                return self._arn(text.removesuffix(".Arn"))
            case {"!If": [condition, yes, no]}:
                return self.resolve(yes if self._holds({"!Condition": condition}) else no)
        pairs = {key: self.resolve(one) for key, one in value.items()}
        return {key: one for key, one in pairs.items() if one is not _NO_VALUE}

    def policy(self, name: str) -> list[dict[str, Any]]:
        """Return the statements of a managed policy."""
        return self.properties(name)["PolicyDocument"]["Statement"]

    def function(self, name: str) -> dict[str, Any]:
        """Return the properties of a function."""
        return self.properties(name)

    def _of_type(self, kind: str) -> list[str]:
        return [
            name
            for name, one in self._raw.items()
            if one["Type"] == kind
            and ("Condition" not in one or self._holds({"!Condition": one["Condition"]}))
        ]

    def _holds(self, condition: dict[str, Any]) -> bool:
        match condition:
            case {"!Condition": name}:
                return self._holds(self._conditions[name])
            case {"!Not": [inner]}:
                return not self._holds(inner)
            case {"!Equals": [left, right]}:
                return str(self.resolve(left)) == str(self.resolve(right))
        raise AssertionError(condition)

    def _ref(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        if self._raw[name]["Type"] == "AWS::Lambda::Function":
            return self.properties(name)["FunctionName"]
        return self._arn(name)

    def _arn(self, name: str) -> str:
        if name in self._arns:
            return self._arns[name]
        kind = self._raw[name]["Type"].split("::")[1].lower()
        return f"arn:aws:{kind}:{REGION}:{ACCOUNT}:{name}"

    def _create(self, name: str) -> str:
        """Create a secret as CloudFormation does; return its ARN."""
        properties = self.properties(name)
        rules = properties["GenerateSecretString"]
        answer = self.client.get_random_password(
            PasswordLength=rules["PasswordLength"], ExcludeCharacters=rules["ExcludeCharacters"]
        )
        document = json.loads(rules["SecretStringTemplate"])
        document[rules["GenerateStringKey"]] = answer["RandomPassword"]
        name = properties["Name"]
        # The fake AWS keeps its secrets for the process.
        self.client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)
        return self.client.create_secret(Name=name, SecretString=json.dumps(document))["ARN"]


def start_rotation(client: Any, secret: str) -> dict[str, str]:
    """Let Secrets Manager create a version without a value; return the event for the function."""
    # AWS removes the label when it moves AWSCURRENT to the same version; the fake refuses then.
    for version, labels in client.describe_secret(SecretId=secret)["VersionIdsToStages"].items():
        if {"AWSPENDING", "AWSCURRENT"} <= set(labels):
            client.update_secret_version_stage(
                SecretId=secret, VersionStage="AWSPENDING", RemoveFromVersionId=version
            )
    function = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:rotation"
    with suppress(client.exceptions.ResourceNotFoundException):  # the fake has no function
        client.rotate_secret(SecretId=secret, RotationLambdaARN=function)
    found = client.describe_secret(SecretId=secret)
    stages = found["VersionIdsToStages"].items()
    (token,) = (version for version, labels in stages if "AWSPENDING" in labels)
    return {"SecretId": found["ARN"], "ClientRequestToken": token}
