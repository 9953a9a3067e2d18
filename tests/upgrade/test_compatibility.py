"""This version next to the previous release: what one of them offers and the other uses.

CONTRIBUTING.md (Two versions side by side) is the rule. What happens while both run is in
test_rolling_upgrade.py. A change that has to break a test is announced one release before.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scoreboard.runtime.settings import load
from tests.upgrade.versions import Version, current, previous

Schema = Mapping[str, Any]

FACTS = """
import json
import api.app, cli.main, streamer.server
from flusher.session import LEASE_LOCK
from scoreboard.broadcast.messages import SUBPROTOCOL, WS_PATH
from scoreboard.events import CORRECTION, FIELDS
from scoreboard.ledger import actions, migrations, positions
from scoreboard.model import Layout, Partition, digest_of, pack, partition_of, shard_of, user_uuid
from scoreboard.runtime import settings
from scoreboard.store import keys, partitions

one = keys.PartitionKeys(Partition("main", 3))
defaults = {name: default for name, _, default in settings.describe()}
print(json.dumps({
    "settings": {
        name: ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in defaults.items()
        if isinstance(value, (bool, int, float, str, tuple)) and value not in ("", ())
    },
    "names": sorted(defaults),
    "deprecated": settings.DEPRECATED,
    "locks": [LEASE_LOCK, actions.CATALOGUE_LOCK, migrations.LOCK_KEY, positions.OPERATOR_LOCK],
    "fences": [partitions.REWIND_FENCE, partitions.GAP_FENCE],
    "keys": {
        "partition": {name: getattr(one, name) for name in sorted(one.__slots__)},
        "seen": one.dedup_shard(17, 5),
        "names": [keys.GROUP, keys.ACTIONS, keys.ACTIONS_CHANGED, keys.COMMITS_PREFIX, keys.PULSE],
    },
    "actions": {
        "digest": digest_of("main", "alice", "win:1").hex(),
        "layout": str(Layout(2, 3600, 16)),
        "packed": pack(7, 9),
        "place": [partition_of("alice", 64), shard_of(digest_of("main", "alice", "win:1"), 64)],
        "user": str(user_uuid("alice")),
    },
    "viewers": [WS_PATH, SUBPROTOCOL],
}))
"""
"""Prints what two versions must agree on."""


@cache
def facts(version: Version) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", FACTS],
        env=version.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def old() -> dict[str, Any]:
    return facts(previous())


@pytest.fixture(scope="module")
def new() -> dict[str, Any]:
    return facts(current())


def read(version: Version, path: str) -> Any:
    return yaml.safe_load((version.folder / path).read_text())


# Redis and PostgreSQL ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["actions", "fences", "keys", "locks"])
def test_both_versions_use_the_same_names_and_numbers(
    old: dict[str, Any], new: dict[str, Any], name: str
) -> None:
    """With another key an action counts twice; with another lock two flushers lead a partition.

    A partition may get further keys, which the version before does not see.
    """
    found = new[name]
    if name == "keys":
        known = old[name]["partition"].keys()
        partition = {key: value for key, value in found["partition"].items() if key in known}
        found = {**found, "partition": partition}
    assert found == old[name]


def test_the_old_version_can_use_the_new_schema() -> None:
    before, after = previous().migrations(), current().migrations()

    assert after[: len(before)] == before
    for name in after:
        text = (current().folder / f"sql/migrations/{name}.sql").read_text()
        if name in before:
            assert text == (previous().folder / f"sql/migrations/{name}.sql").read_text(), name
            continue
        row = re.search(rf"VALUES \('{name}', '(\w+)'\)", text)
        assert row is not None
        assert row[1] <= before[-1], f"{name}: a rollback would need a restore"


# Settings ---------------------------------------------------------------------------------------


def test_a_setting_is_removed_one_release_after_its_announcement(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    removed = set(old["names"]) - set(new["names"])

    assert removed <= set(old["deprecated"]), "list it in settings.DEPRECATED first"


def test_the_settings_of_the_old_version_start_the_new_one(old: dict[str, Any]) -> None:
    kept = {name: text for name, text in old["settings"].items() if name not in old["deprecated"]}

    load({"REDIS_URL": "redis://127.0.0.1:1/0", **kept})


# Clients ----------------------------------------------------------------------------------------


def test_viewers_of_the_old_version_reach_the_new_one(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert new["viewers"] == old["viewers"]


def resolve(document: Schema, schema: Schema | bool) -> Schema:
    if isinstance(schema, bool):
        return {}
    while "$ref" in schema:
        found: Any = document
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        schema = found
    return schema


def differences(
    documents: tuple[Schema, Schema], schemas: tuple[Schema, Schema], *, sent: bool, path: str
) -> Iterator[str]:
    """Yield what breaks a client of the first document at a server of the second one.

    ``sent``: the server sends the values; otherwise it receives them.
    """
    before, after = (resolve(*pair) for pair in zip(documents, schemas, strict=True))
    kinds = [
        {str(one) for one in ([kind] if isinstance(kind, str) else kind or [])}
        for kind in (before.get("type"), after.get("type"))
    ]
    # A server may send fewer types than before, and receive more.
    narrow, wide = (kinds[1], kinds[0]) if sent else (kinds[0], kinds[1])
    if kinds[0] and kinds[1] and not narrow <= wide:
        yield f"{path}: the type is {sorted(kinds[1])}, it was {sorted(kinds[0])}"
    needed = [set(one.get("required", ())) for one in (before, after)]
    if lost := needed[0] - needed[1] if sent else needed[1] - needed[0]:
        yield f"{path}: {sorted(lost)} {'may be missing' if sent else 'are required now'}"
    if not sent and "enum" in before and not set(before["enum"]) <= set(after.get("enum", ())):
        yield f"{path}: values are refused now"
    members = [one.get("properties", {}) for one in (before, after)]
    for name, schema in members[0].items():
        if name in members[1]:
            pair = (schema, members[1][name])
            yield from differences(documents, pair, sent=sent, path=f"{path}.{name}")
        else:
            yield f"{path}: {name} is missing"
    if "items" in before and "items" in after:
        pair = (before["items"], after["items"])
        yield from differences(documents, pair, sent=sent, path=f"{path}[]")


@pytest.mark.parametrize(
    ("after", "sent", "received"),
    [
        ({"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, 0, 0),
        ({"properties": {"a": {"type": "integer"}}}, 1, 0),
        ({"properties": {"a": {"type": "integer"}}, "required": ["a", "b"]}, 0, 1),
        ({"properties": {"a": {"type": ["integer", "null"]}}, "required": ["a"]}, 1, 0),
        ({"properties": {"a": {"type": "string"}}, "required": ["a"]}, 1, 1),
        ({"properties": {}, "required": ["a"]}, 1, 1),
    ],
)
def test_the_comparison_finds_what_breaks_a_client(after: Schema, sent: int, received: int) -> None:
    before = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}

    assert len(list(differences(({}, {}), (before, after), sent=True, path=""))) == sent
    assert len(list(differences(({}, {}), (before, after), sent=False, path=""))) == received


def schemas_of(operation: Schema) -> Iterator[tuple[str, bool, Schema]]:
    """Yield the bodies of an operation with JSON: name, whether the server sends it, schema."""
    bodies = {"request": operation.get("requestBody", {}), **operation["responses"]}
    for name, body in bodies.items():
        for kind, content in body.get("content", {}).items():
            if "json" in kind and "schema" in content:
                yield f"{name} {kind}", name != "request", content["schema"]


def parameters_of(operation: Schema) -> dict[str, Schema]:
    """Return the parameters of an operation by name, without those of its path."""
    return {one["name"]: one for one in operation.get("parameters", ()) if one.get("in") != "path"}


def test_the_http_api_serves_clients_of_the_old_version() -> None:
    documents = tuple(
        json.loads((version.folder / "docs/openapi.json").read_text())
        for version in (previous(), current())
    )
    # A client sends the values of a path, not the names that the document has for them.
    before, after = (
        {re.sub(r"\{\w+\}", "{}", path): item for path, item in document["paths"].items()}
        for document in documents
    )
    found: list[str] = []
    for path, operations in before.items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            if method not in after.get(path, {}):
                found.append(f"{where} is missing")
                continue
            other = after[path][method]
            known = parameters_of(operation).keys()
            accepted = parameters_of(other)
            needed = {name for name, one in accepted.items() if one.get("required")}
            found += [f"{where}: {name} is required now" for name in sorted(needed - known)]
            found += [f"{where}: {name} is missing" for name in sorted(known - accepted.keys())]
            answers = {name: schema for name, _, schema in schemas_of(other)}
            for name, sent, schema in schemas_of(operation):
                if name in answers:
                    pair = (schema, answers[name])
                    found += differences(documents, pair, sent=sent, path=f"{where} {name}")
                elif not name.startswith(("4", "5")):
                    found.append(f"{where}: {name} is missing")

    assert found == []


def test_messages_are_understood_by_viewers_and_streamers_of_the_old_version() -> None:
    documents = tuple(read(version, "docs/asyncapi.yaml") for version in (previous(), current()))
    before, after = (document["components"]["messages"] for document in documents)
    received = {"auth", "sync"}
    assert received <= before.keys()
    found: list[str] = [f"{name} is missing" for name in before.keys() - after.keys()]
    for name in before.keys() & after.keys():
        pair = (before[name]["payload"], after[name]["payload"])
        found += differences(documents, pair, sent=name not in received, path=name)

    assert found == []


# Gateway ----------------------------------------------------------------------------------------


def routes(version: Version) -> dict[str, Schema]:
    services = read(version, "kong/kong.yml")["services"]
    return {route["name"]: route for service in services for route in service["routes"]}


def test_the_old_and_the_new_gateway_have_the_same_routes() -> None:
    """Both gateways reach both versions of a service, so a new route is used one release later."""
    before, after = routes(previous()), routes(current())

    assert before.keys() <= after.keys()
    for name, route in before.items():
        assert set(route["paths"]) <= set(after[name]["paths"]), name
        assert set(route["methods"]) <= set(after[name]["methods"]), name


def plugin_settings(version: Version) -> dict[str, set[str]]:
    """Return the settings that the configuration gives each plugin of this project."""
    configuration = read(version, "kong/kong.yml")
    plugins = list(configuration["plugins"])
    for route in routes(version).values():
        plugins += route.get("plugins", [])
    found: dict[str, set[str]] = {}
    for plugin in plugins:
        if plugin["name"].startswith("scoreboard-"):
            found.setdefault(plugin["name"], set()).update(plugin.get("config", {}))
    return found


def test_the_new_plugins_accept_the_configuration_of_the_old_version() -> None:
    used = plugin_settings(previous())
    assert used.keys() == {"scoreboard-authz", "scoreboard-intake"}

    for name, fields in used.items():
        text = (current().folder / f"kong/plugins/{name}/schema.lua").read_text()
        declared = re.findall(r"\{ (\w+) = ", text)
        required = re.findall(r"\{ (\w+) = \{[^{}]*required = true(?![^{}]*default)", text)
        assert fields <= set(declared), name
        assert set(required) <= fields | {"config"}, name


def test_both_gateways_send_the_services_the_same_headers() -> None:
    def headers(version: Version) -> list[str]:
        pattern = re.compile(r"kong\.service\.request\.(?:set|clear)_header\([^,)]+")
        texts = [path.read_text() for path in sorted((version.folder / "kong").rglob("*.lua"))]
        return sorted(pattern.findall("\n".join(texts)))

    assert headers(previous()) == headers(current()), "the services must accept both: test that"


# Monitoring -------------------------------------------------------------------------------------


def metrics(version: Version) -> dict[str, set[str]]:
    """Return the documented metrics with their labels."""
    text = (version.folder / "docs/reference/metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| (.*?) \|", text, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def used_metrics(folder: Path) -> set[str]:
    texts = [path.read_text() for path in sorted(folder.glob("*.yml"))]
    names = set(re.findall(r"\bscoreboard_\w+", "\n".join(texts)))
    return {re.sub(r"_(?:bucket|sum|count|created)$", "", name) for name in names}


def test_the_rules_of_the_old_version_find_the_metrics_of_the_new_one() -> None:
    before, after = metrics(previous()), metrics(current())
    used = used_metrics(previous().folder / "deploy/prometheus/rules") & before.keys()
    assert len(used) > 20

    assert used <= after.keys()
    assert {name for name in used if not before[name] <= after[name]} == set()


def test_no_rule_of_the_new_version_fires_for_want_of_a_new_metric() -> None:
    """`absent` of a metric that the old version does not have would fire during the upgrade."""
    rules = sorted((current().folder / "deploy/prometheus/rules").glob("*.yml"))
    texts = "\n".join(path.read_text() for path in rules)
    wanted = set(re.findall(r"absent\w*\(\s*(scoreboard_\w+)", texts))

    assert texts.count("absent(up") > 3, "the expressions are found"
    assert wanted <= metrics(previous()).keys()
