"""Reads docker-compose.yml, merged and with every ${VARIABLE} resolved."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z0-9_]+)(?::-([^${}]*))?\}")
"""A variable; its default may contain others, which are resolved first."""

Entity = dict[str, Any]


def load(environ: dict[str, str] | None = None) -> Entity:
    """Return the document with variables from ``environ`` or their defaults."""
    known = environ or {}
    document = yaml.load(resolve(TEXT, known), yaml.CSafeLoader)
    for service in document["services"].values():
        given = service.get("environment", {})
        # Without a value: that of Compose's own environment, if there is one.
        passed = {name: known.get(name) for name, value in given.items() if value is None}
        for name, value in passed.items():
            if value is None:
                del given[name]
            else:
                given[name] = value
    return document


def resolve(text: str, environ: dict[str, str]) -> str:
    """Return a text of a compose file with every variable replaced."""
    while VARIABLE.search(text):
        text = VARIABLE.sub(lambda m: environ.get(m[1]) or m[2] or "", text)
    return text.replace("$$", "$")


COMPOSE = load()
SERVICES: dict[str, Entity] = COMPOSE["services"]
ONE_SHOTS = {name for name, service in SERVICES.items() if service.get("restart") == "no"}
PROFILES = {name for name, service in SERVICES.items() if "profiles" in service}
"""Services that start only when they are asked for."""
OURS = {name for name, s in SERVICES.items() if s.get("image") == "scoreboard:local"}


def environment(service: str) -> dict[str, str]:
    """Return the environment of a service."""
    return {name: str(value) for name, value in SERVICES[service].get("environment", {}).items()}


def option(service: str, name: str) -> str:
    """Return the value of an option of a service's command."""
    command = SERVICES[service]["command"]
    return command[command.index(name) + 1]


def dockerfile(name: str) -> str:
    """Return a Dockerfile with continued lines joined."""
    return (ROOT / name).read_text().replace("\\\n", " ")


def kong_image() -> dict[str, str]:
    """Return the settings in the image of the gateway."""
    block = dockerfile("deploy/docker/kong.Dockerfile").partition("\nENV ")[2].partition("\n")[0]
    return dict(pair.split("=", 1) for pair in block.split())
