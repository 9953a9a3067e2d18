"""Write the templates of Elasticsearch and the saved objects of Kibana.

`make elastic` writes them; `--check` compares instead and exits 1 where one is out of date. The
mappings come from the table of log fields.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from scoreboard.runtime.log_fields import FIELDS, LINE_FIELDS
from scoreboard.runtime.telemetry import APP_DATASET, AUDIT_DATASET, ECS_VERSION

FOLDER: Final = Path(__file__).parent
PRIORITY: Final = 200
"""Above that of Elasticsearch's own template for logs-*-*, which is 100."""

PIPELINE: Final = "scoreboard"
COMMON: Final = "scoreboard@mappings"
RETENTION: Final = {APP_DATASET: "30d", AUDIT_DATASET: "400d"}

_TYPES: Final[Mapping[str, dict[str, Any]]] = {
    "keyword": {"type": "keyword", "ignore_above": 2100},
    "wildcard": {"type": "wildcard"},
    "match_only_text": {"type": "match_only_text"},
    "long": {"type": "long"},
    "double": {"type": "double"},
    "boolean": {"type": "boolean"},
    "ip": {"type": "ip"},
    "date": {"type": "date"},
}
"""A text of a log line has at most 2000 characters, so every keyword is indexed."""

_SHIPPED: Final[Mapping[str, str]] = {
    "agent.id": "keyword",
    "agent.name": "keyword",
    "agent.type": "keyword",
    "agent.version": "keyword",
    "container.id": "keyword",
    "event.ingested": "date",
    "log.file.path": "keyword",
    "log.offset": "long",
    "url.path": "wildcard",
}
"""Fields that Filebeat and the ingest pipeline add."""


def documents() -> Iterator[tuple[str, str]]:
    """Return path and content of every generated file."""
    yield "elasticsearch/component-template.scoreboard@mappings.json", _json(_mappings())
    for dataset in (APP_DATASET, AUDIT_DATASET):
        name = dataset.replace(".", "-")
        yield f"elasticsearch/ilm-policy.{name}.json", _json(_policy(dataset))
        yield f"elasticsearch/component-template.{dataset}@settings.json", _json(_settings(dataset))
        yield f"elasticsearch/index-template.logs-{dataset}.json", _json(_template(dataset))
    yield f"elasticsearch/ingest-pipeline.{PIPELINE}.json", _json(_pipeline())
    yield "kibana/saved-objects.ndjson", "".join(_line(one) for one in _saved_objects())


def _mappings() -> dict[str, Any]:
    """Return the mappings of both data streams.

    ``dynamic`` is false: a field of a newer version is stored and not indexed, and never refused.
    """
    types = dict(LINE_FIELDS) | {one.name: one.type for one in FIELDS.values()} | dict(_SHIPPED)
    root: dict[str, Any] = {}
    for name, kind in sorted(types.items()):
        *parents, leaf = name.split(".")
        properties = root
        for parent in parents:
            properties = properties.setdefault(parent, {"properties": {}})["properties"]
        properties[leaf] = _TYPES[kind]
    root["labels"] = {"type": "object", "dynamic": True}
    labels = {"path_match": "labels.*", "mapping": _TYPES["keyword"]}
    return {
        "template": {
            "mappings": {
                "dynamic": False,
                "date_detection": False,
                "numeric_detection": False,
                "dynamic_templates": [{"labels": labels}],
                "properties": root,
            }
        },
        "_meta": {"ecs": ECS_VERSION, "made_by": "make elastic"},
    }


def _settings(dataset: str) -> dict[str, Any]:
    properties = {
        "type": {"type": "constant_keyword", "value": "logs"},
        "dataset": {"type": "constant_keyword", "value": dataset},
        "namespace": {"type": "constant_keyword"},
    }
    return {
        "template": {
            "settings": {
                "index": {
                    "lifecycle": {"name": dataset.replace(".", "-")},
                    "codec": "best_compression",
                    "default_pipeline": PIPELINE,
                    "number_of_shards": 1,
                }
            },
            "mappings": {"properties": {"data_stream": {"properties": properties}}},
        }
    }


def _template(dataset: str) -> dict[str, Any]:
    return {
        "index_patterns": [f"logs-{dataset}-*"],
        "data_stream": {},
        "priority": PRIORITY,
        "composed_of": [COMMON, f"{dataset}@settings"],
        "_meta": {"made_by": "make elastic"},
    }


def _policy(dataset: str) -> dict[str, Any]:
    hot = {"max_age": "7d" if dataset == APP_DATASET else "30d", "max_primary_shard_size": "25gb"}
    return {
        "policy": {
            "phases": {
                "hot": {"actions": {"rollover": hot}},
                "warm": {
                    "min_age": "2d" if dataset == APP_DATASET else "30d",
                    "actions": {"forcemerge": {"max_num_segments": 1}, "readonly": {}},
                },
                "delete": {"min_age": RETENTION[dataset], "actions": {"delete": {}}},
            }
        }
    }


def _pipeline() -> dict[str, Any]:
    stamp = {"field": "event.ingested", "copy_from": "_ingest.timestamp"}
    return {
        "description": "Record when a line arrived.",
        "processors": [{"set": {**stamp, "ignore_failure": True}}],
    }


SEARCHES: Final = {
    "errors": ("Errors", APP_DATASET, 'log.level : ("error" or "critical")'),
    "requests": ("Requests", APP_DATASET, 'event.action : "request_served"'),
    "refusals": ("Refusals", AUDIT_DATASET, 'event.outcome : "failure"'),
    "changes": ("Administrative changes", AUDIT_DATASET, "scoreboard.audit.seq : *"),
}
"""The saved searches: title, data stream and query."""

COLUMNS: Final = {
    APP_DATASET: ["log.level", "service.name", "event.action", "event.reason", "http.request.id"],
    AUDIT_DATASET: [
        *(
            "event.action",
            "event.outcome",
            "event.reason",
            "user.name",
            "user.id",
            "client.address",
        ),
        *("client.address", "scoreboard.board", "http.request.id"),
    ],
}


def _saved_objects() -> Iterator[dict[str, Any]]:
    """Return data views, searches, and the dashboard of the audit stream."""
    for dataset in (APP_DATASET, AUDIT_DATASET):
        view = {"title": f"logs-{dataset}-*", "name": dataset, "timeFieldName": "@timestamp"}
        yield _object("index-pattern", dataset, view)
    for name, (title, dataset, query) in SEARCHES.items():
        attributes = {
            "title": f"Scoreboard: {title}",
            "columns": COLUMNS[dataset],
            "sort": [["@timestamp", "desc"]],
            "kibanaSavedObjectMeta": {"searchSourceJSON": _source(query)},
        }
        yield _object("search", f"scoreboard-{name}", attributes, [_view(dataset)])
    charts = {
        "outcomes": ("Audit lines by action and outcome", "event.action"),
        "reasons": ("Refusals by reason", "event.reason"),
        "addresses": ("Refusals by client address", "client.address"),
    }
    for name, (title, field) in charts.items():
        query = "" if name == "outcomes" else 'event.outcome : "failure"'
        yield _object(
            "visualization",
            f"scoreboard-{name}",
            _chart(title, field, query),
            [_view(AUDIT_DATASET)],
        )
    panels = [("visualization", f"scoreboard-{name}") for name in charts]
    panels += [("search", "scoreboard-refusals"), ("search", "scoreboard-changes")]
    yield _dashboard(panels)


def _chart(title: str, field: str, query: str) -> dict[str, Any]:
    histogram = {"field": "@timestamp", "interval": "auto", "min_doc_count": 1}
    terms = {"field": field, "size": 10, "order": "desc", "orderBy": "1"}
    state = {
        "title": f"Scoreboard: {title}",
        "type": "histogram",
        "params": {"type": "histogram", "addLegend": True, "addTooltip": True},
        "aggs": [
            {"id": "1", "enabled": True, "type": "count", "schema": "metric", "params": {}},
            {
                "id": "2",
                "enabled": True,
                "type": "date_histogram",
                "schema": "segment",
                "params": histogram,
            },
            {"id": "3", "enabled": True, "type": "terms", "schema": "group", "params": terms},
        ],
    }
    return {
        "title": state["title"],
        "visState": json.dumps(state),
        "uiStateJSON": "{}",
        "description": "",
        "version": 1,
        "kibanaSavedObjectMeta": {"searchSourceJSON": _source(query)},
    }


def _dashboard(panels: list[tuple[str, str]]) -> dict[str, Any]:
    placed = [
        {
            "type": kind,
            "panelIndex": str(index),
            "panelRefName": f"panel_{index}",
            "embeddableConfig": {},
            "gridData": {"x": 24 * (index % 2), "y": 15 * (index // 2), "w": 24, "h": 15}
            | {"i": str(index)},
        }
        for index, (kind, _) in enumerate(panels)
    ]
    references = [
        {"type": kind, "id": name, "name": f"panel_{index}"}
        for index, (kind, name) in enumerate(panels)
    ]
    attributes = {
        "title": "Scoreboard: audit",
        "description": "Refusals and administrative changes",
        "panelsJSON": json.dumps(placed),
        "optionsJSON": json.dumps({"useMargins": True}),
        "timeRestore": True,
        "timeFrom": "now-24h",
        "timeTo": "now",
        "kibanaSavedObjectMeta": {
            "searchSourceJSON": json.dumps({"query": {"language": "kuery", "query": ""}})
        },
    }
    return _object("dashboard", "scoreboard-audit", attributes, references)


def _source(query: str) -> str:
    return json.dumps(
        {
            "query": {"language": "kuery", "query": query},
            "filter": [],
            "indexRefName": "kibanaSavedObjectMeta.searchSourceJSON.index",
        }
    )


def _view(dataset: str) -> dict[str, str]:
    name = "kibanaSavedObjectMeta.searchSourceJSON.index"
    return {"type": "index-pattern", "id": dataset, "name": name}


def _object(
    kind: str, name: str, attributes: dict[str, Any], references: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    return {"type": kind, "id": name, "attributes": attributes, "references": references or []}


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _line(document: object) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the files, or compare them; return the exit code."""
    is_check = sys.argv[1:] == ["--check"]
    stale = []
    for name, text in documents():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not is_check:
                path.write_text(text)
    for name in stale:
        print(f"deploy/elastic/{name}", "is out of date: make elastic" if is_check else "written")
    return int(is_check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
