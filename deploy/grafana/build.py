"""Write the dashboards of Grafana, and docs/reference/dashboards.md, from panels.yml.

    python deploy/grafana/build.py [--check]

``--check`` compares instead and exits with 1 if a file is out of date.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
DASHBOARDS: Final = HERE / "dashboards"
PAGE: Final = ROOT / "docs/reference/dashboards.md"

DOCS: Final = "https://git.example/scoreboard/blob/main/"
"""What precedes docs/how-to/runbook.md in links: the address of your copy of this repository."""

SCHEMA_VERSION: Final = 41  # Grafana 12
ROW_WIDTH, ROW_HEIGHT = 24, 8
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
UNITS: Final = {
    "s": "seconds",
    "ms": "milliseconds",
    "bytes": "bytes",
    "percentunit": "share",
    "short": "number",
    "reqps": "per second",
    "bool_on_off": "1 or 0",
}
"""The units in use, and their names on the page."""

Entity = dict[str, Any]


class Panel(Struct, forbid_unknown_fields=True, frozen=True):
    """A panel of panels.yml, which explains the fields."""

    title: str
    about: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    orange: float | None = None
    red: float | None = None
    below: bool = False
    alert: str = ""

    def __post_init__(self) -> None:
        """Check what Grafana would not: the kind and the unit."""
        if self.unit not in UNITS or self.kind not in OPTIONS:
            raise ValueError(f"{self.title}: kind or unit is not known")


class Dashboard(Struct, forbid_unknown_fields=True, frozen=True):
    """A dashboard of panels.yml: rows of panels."""

    name: str
    title: str
    about: str
    rows: list[list[Panel]]

    @property
    def uid(self) -> str:
        """Return the identifier in addresses, which must not change."""
        return f"scoreboard-{self.name}"


LINES: Final = {
    "lineWidth": 1,
    "fillOpacity": 10,
    "showPoints": "never",
    "spanNulls": False,
}
OPTIONS: Final[dict[str, Entity]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "background",
        "graphMode": "area",
        "justifyMode": "auto",
        "textMode": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
        "orientation": "auto",
        "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
    },
    "table": {"showHeader": True, "cellHeight": "sm", "frameIndex": 0},
}
"""The options of each kind of panel."""

HIDE_TIME_AND_VALUE: Final = {
    "id": "organize",
    "options": {"excludeByName": {"Time": True, "Value": True}},
}
"""A table of alerts shows their labels only."""


def load() -> list[Dashboard]:
    """Read panels.yml. Raises ValidationError, with the path, for a field that is wrong."""
    text = (HERE / "panels.yml").read_text()
    return msgspec.convert(yaml.safe_load(text), list[Dashboard])


def document(dashboard: Dashboard) -> Entity:
    """Return a dashboard as Grafana reads it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["scoreboard"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [_link("dashboards", "Scoreboard", tags=["scoreboard"])],
        "templating": {
            "list": [
                _variable("datasource", "datasource", "Data source", "prometheus", "Prometheus"),
                _variable("textbox", "docs", "Runbook at", DOCS, DOCS),
            ]
        },
        "annotations": {"list": []},
        "panels": list(_panels(dashboard)),
    }


def _panels(dashboard: Dashboard) -> Iterator[Entity]:
    number = 0
    for row, panels in enumerate(dashboard.rows):
        width = ROW_WIDTH // len(panels)
        for column, panel in enumerate(panels):
            number += 1
            place = {"x": column * width, "y": row * ROW_HEIGHT, "w": width, "h": ROW_HEIGHT}
            yield _panel(panel, number, place)


def _panel(panel: Panel, number: int, place: dict[str, int]) -> Entity:
    is_graph, is_table = panel.kind == "timeseries", panel.kind == "table"
    defaults: Entity = {
        "unit": panel.unit,
        "noValue": "no data",
        "thresholds": {"mode": "absolute", "steps": list(_steps(panel))},
        "color": {"mode": "palette-classic" if is_graph else "thresholds"},
    }
    if is_graph:
        style = "off" if panel.red is None else "line"
        defaults |= {"min": 0, "custom": LINES | {"thresholdsStyle": {"mode": style}}}
    mode = {"instant": is_table, "range": not is_table}
    queries = enumerate(panel.queries.items())
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "format": "table" if is_table else "time_series",
                **mode,
            }
            for index, (legend, expression) in queries
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": OPTIONS[panel.kind],
        "links": list(_runbook(panel)),
        "transformations": [HIDE_TIME_AND_VALUE] if is_table else [],
    }


def _steps(panel: Panel) -> Iterator[Entity]:
    """Yield the colours from the smallest value on."""
    limits = [(panel.orange, "orange"), (panel.red, "red")]
    given = [(value, colour) for value, colour in limits if value is not None]
    if panel.below:
        values = [None, *(value for value, _ in reversed(given))]
        colours = [*(colour for _, colour in reversed(given)), "green"]
    else:
        values = [None, *(value for value, _ in given)]
        colours = ["green" if given else "blue", *(colour for _, colour in given)]
    for value, colour in zip(values, colours, strict=True):
        yield {"value": value, "color": colour}


def _runbook(panel: Panel) -> Iterator[Entity]:
    """Yield the link to the section of the alert; of the table of alerts, to the whole page."""
    page = "${docs}docs/how-to/runbook.md"
    if panel.alert:
        yield _link("link", f"Runbook: {panel.alert}", url=f"{page}#{panel.alert.lower()}")
    elif panel.kind == "table":
        yield _link("link", "Runbook", url=page)


def _link(kind: str, title: str, *, url: str = "", tags: Sequence[str] = ()) -> Entity:
    """Return a link to an address, or to the dashboards with a tag."""
    return {
        "type": kind,
        "title": title,
        "url": url,
        "tags": list(tags),
        "icon": "external link",
        "tooltip": "",
        "asDropdown": False,
        "includeVars": kind == "dashboards",
        "keepTime": kind == "dashboards",
        "targetBlank": kind == "link",
    }


def _variable(kind: str, name: str, label: str, query: str, text: str) -> Entity:
    current = {"selected": True, "text": text, "value": query}
    return {"type": kind, "name": name, "label": label, "query": query, "current": current}


HEAD: Final = """\
<!-- Made by `python deploy/grafana/build.py` from panels.yml. -->
# Dashboards

Six dashboards of Grafana. The title of each panel is the question that it answers.
[Monitor the services](../how-to/monitor.md) describes how to start Grafana. A panel
with an alert links its section of the [runbook](../how-to/runbook.md)."""


def page(dashboards: Sequence[Dashboard]) -> Iterator[str]:
    """Yield the lines of the page that describes every panel."""
    yield HEAD
    for dashboard in dashboards:
        title = dashboard.title.removeprefix("Scoreboard: ")
        yield f"\n## {title[0].upper()}{title[1:]}\n\n{dashboard.about} (`{dashboard.uid}`)"
        for panel in (panel for row in dashboard.rows for panel in row):
            yield f"\n### {panel.title}\n\n{panel.about}\n\n{_colours(panel)}\n\n```promql"
            yield from panel.queries.values()
            yield "```"


def _colours(panel: Panel) -> str:
    word = "below" if panel.below else "from"
    limits = (("orange", panel.orange), ("red", panel.red))
    given = ", ".join(f"{name} {word} {value:g}" for name, value in limits if value is not None)
    parts = [f"Unit: {UNITS[panel.unit]}.", f"{given[0].upper()}{given[1:]}." if given else ""]
    if panel.alert:
        parts.append(f"Alert: [{panel.alert}](../how-to/runbook.md#{panel.alert.lower()}).")
    return " ".join(filter(None, parts))


def main(arguments: Sequence[str]) -> int:
    """Write the files, or compare them; return the exit code."""
    dashboards = load()
    files = {
        DASHBOARDS / f"{one.name}.json": json.dumps(document(one), indent=1, ensure_ascii=False)
        for one in dashboards
    }
    files[PAGE] = "\n".join(page(dashboards))
    stale = [path for path in DASHBOARDS.glob("*.json") if path not in files]
    for path, text in files.items():
        if not path.exists() or path.read_text() != f"{text}\n":
            stale.append(path)
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)} is out of date: run {sys.argv[0]}\n")
        return int(bool(stale))
    for path in stale:
        if path in files:
            path.write_text(f"{files[path]}\n")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
