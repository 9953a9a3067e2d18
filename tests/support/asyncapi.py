"""Check the messages that tests receive against docs/asyncapi.yaml."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT = Path(__file__).parents[2] / "docs" / "asyncapi.yaml"
_URI = "urn:scoreboard:asyncapi"


class _StrictLoader(yaml.SafeLoader):
    """A loader that refuses a key twice in one mapping, of which YAML's takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        again = {key for key in keys if keys.count(key) > 1}
        if again:
            raise yaml.constructor.ConstructorError(
                None, None, f"found twice: {sorted(again)}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read(text: str) -> dict[str, Any]:
    """Parse YAML.

    Raises ConstructorError if a mapping has a key twice.
    """
    return yaml.load(text, Loader=_StrictLoader)


@cache
def document() -> dict[str, Any]:
    """Read docs/asyncapi.yaml."""
    return read(DOCUMENT.read_text())


def payload_names(action: str) -> dict[str, str]:
    """Return the schema of each message the server sends (``send``) or takes (``receive``)."""
    channel = document()["channels"]["scoreboard"]["messages"]
    found: dict[str, str] = {}
    for operation in document()["operations"].values():
        if operation["action"] == action:
            for reference in operation["messages"]:
                name = reference["$ref"].rpartition("/")[2]
                message = channel[name]["$ref"].rpartition("/")[2]
                payload = document()["components"]["messages"][message]["payload"]["$ref"]
                found[name] = payload.rpartition("/")[2]
    return found


@cache
def _validator(schema: str) -> Draft202012Validator:
    resource = Resource.from_contents(document(), default_specification=DRAFT202012)
    registry = Registry().with_resource(_URI, resource)
    return Draft202012Validator({"$ref": f"{_URI}#/components/schemas/{schema}"}, registry=registry)


@cache
def _names(action: str) -> dict[str, str]:
    return payload_names(action)


def check_message(message: dict[str, Any], action: str = "send") -> None:
    """Fail if a message does not match the document; unknown fields are failures too."""
    names = _names(action)
    assert message.get("type") in names, f"docs/asyncapi.yaml knows no message {message!r}"
    schema = names[message["type"]]
    error = next(iter(_validator(schema).iter_errors(message)), None)
    assert error is None, f"{message!r} breaks docs/asyncapi.yaml: {error}"
    known = document()["components"]["schemas"][schema]["properties"]
    unknown = set(message) - set(known)
    assert not unknown, f"docs/asyncapi.yaml does not describe {sorted(unknown)}"
