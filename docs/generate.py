"""Write the reference pages that are made from the code: settings, metrics, events, commands.

`make reference` writes them; `--check` compares instead and exits 1 where one is out of date.
"""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, get_args, get_origin, get_type_hints

import click
import msgspec
from log_calls import AUDIT, log_calls
from msgspec import Meta

from cli.group import scoreboard
from scoreboard.runtime.audit import ACTIONS
from scoreboard.runtime.log_fields import FIELDS, LINE_FIELDS
from scoreboard.runtime.settings import Secret, Settings, describe
from scoreboard.runtime.telemetry import MetricDescription

FOLDER: Final = Path(__file__).parent / "reference"
NOTICE: Final = "<!-- Made by `make reference` from the code. -->\n"
WIDTH: Final = 88

SERVICES: Final = {
    "api": ("api.__main__", "`SCOREBOARD_API_METRICS_PORT` (9100)"),
    "streamer": ("streamer.__main__", "`SCOREBOARD_WS_METRICS_PORT` (9101)"),
    "flusher": ("flusher.__main__", "`SCOREBOARD_FLUSHER_METRICS_PORT` (9102)"),
    "scoreboard kong sync": ("cli.gateway.sync", "`--probe-port` (9103)"),
}
"""What has a metrics port: the module that a process of it imports, and the port."""

LIST_METRICS: Final = """
import importlib, sys
import msgspec
importlib.import_module(sys.argv[1])
from scoreboard.runtime.telemetry import METRICS
sys.stdout.buffer.write(msgspec.json.encode(sorted(METRICS.values(), key=lambda one: one.name)))
"""
"""A program of its own for each service: metrics register when their module is imported."""


SETTINGS: Final = """\
# Settings

Every setting is an environment variable. An empty value means the default. An unknown
`SCOREBOARD_*` variable, or a value out of its range, stops the process with a message that names
it. Times are in seconds and sizes in bytes, unless the name says otherwise.

`scoreboard config show` prints the settings in force, `scoreboard config check` tries them, and
`scoreboard config example` prints them all as a `.env` file."""

METRICS: Final = """\
# Metrics

Each process serves its metrics at `/metrics` of its metrics port, in the Prometheus text format.
Labels have a closed set of values: never a user, a token or an action. *Normal* is what a healthy
system shows; counters are then meant as rates. [Monitor the services](../how-to/monitor.md) lists
alerts. A service with several worker processes exports the metrics of all of them on its port, with
the label `worker`.

## All processes
"""

COMMANDS: Final = """\
# Commands

The help text of every command. [The command line](cli.md) describes what all commands have in
common, and the exit codes."""


LOG_EVENTS: Final = """\
# Log events

Each log line is a JSON object with the fields of the Elastic Common Schema (ECS).
[Logs and audit](../how-to/logs-and-audit.md) describes levels, sampling, audit lines and searches.

## Events

`event.action` and `message` have the name of the event. Lines of libraries have a text as
`message`, and no `event.action`."""

LOG_FIELDS: Final = """
## Fields

A field has one type in every line. A value of another type becomes a text in `labels`."""

PREPARED: Final = {"exc_info": "error.stack_trace", "trace": "trace.id"}
"""Names in the code from which telemetry makes fields."""

AUDIT_ACTIONS: Final = """
## Audit actions

`event.action` of the lines with the logger `scoreboard.audit`."""


def settings_page() -> Iterator[str]:
    """Return the lines of the page of all settings."""
    yield SETTINGS
    hints = get_type_hints(Settings, include_extras=True)
    groups = _groups()
    group = ""
    for field, (variable, about, default) in zip(
        msgspec.structs.fields(Settings), describe(), strict=True
    ):
        if groups[field.name] != group:
            group = groups[field.name]
            yield from ("", f"## {group}", "", "| setting | type | default | meaning |")
            yield "|---|---|---|---|"
        kind = _kind(hints[field.name])
        yield f"| `{variable}` | {kind} | {_default(default)} | {_cell(about)} |"


def metrics_page() -> Iterator[str]:
    """Return the lines of the page of all metrics."""
    metrics = {service: metrics_of(service) for service in SERVICES}
    everywhere = [one for one in metrics["api"] if all(one in own for own in metrics.values())]
    yield from (METRICS, *_metrics_table(everywhere))
    for service, (_, port) in SERVICES.items():
        own = [one for one in metrics[service] if one not in everywhere]
        yield from ("", f"## {service}", "", f"Port: {port}.", "", *_metrics_table(own))


def commands_page() -> Iterator[str]:
    """Return the lines of the page of all commands."""
    yield COMMANDS
    yield from _command(scoreboard, click.Context(scoreboard, info_name="scoreboard"))


def log_events_page() -> Iterator[str]:
    """Return the lines of the page of log events, their fields, and audit actions."""
    yield from (LOG_EVENTS, "", "| event | level | fields | logged by |", "|---|---|---|---|")
    events: dict[str, tuple[set[str], set[str], set[str]]] = {}
    for call in log_calls():
        if call.level == AUDIT:
            continue
        levels, fields, modules = events.setdefault(call.event, (set(), set(), set()))
        levels.add(call.level)
        fields |= {PREPARED.get(name or "") or FIELDS[name or ""].name for name in call.fields}
        modules.add(call.module)
    for event, columns in sorted(events.items()):
        cells = (", ".join(f"`{word}`" for word in sorted(column)) for column in columns)
        yield f"| `{event}` | {' | '.join(cells)} |"
    yield from (LOG_FIELDS, "", "| field | type |", "|---|---|")
    types = dict(LINE_FIELDS) | {field.name: field.type for field in FIELDS.values()}
    for name, kind in sorted(types.items()):
        yield f"| `{name}` | {kind} |"
    yield from (AUDIT_ACTIONS, "", "| action | category | type |", "|---|---|---|")
    for action, found in sorted(ACTIONS.items()):
        yield f"| `{action}` | {found.category} | {', '.join(found.types)} |"


PAGES: Final = {
    "log-events.md": log_events_page,
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "commands.md": commands_page,
}


def _groups() -> dict[str, str]:
    """Return the group of each setting: the comments between the fields."""
    found: dict[str, str] = {}
    group = "Servers"
    for line in inspect.getsource(Settings).splitlines():
        if comment := re.fullmatch(r"    # (.+)", line):
            group = comment[1]
        elif field := re.match(r"    (\w+): ", line):
            found[field[1]] = group
    return found


def _kind(hint: object) -> str:
    """Return a type and its bounds in words."""
    bounds = []
    while get_origin(hint) is Annotated:
        hint, *metas = get_args(hint)
        for meta in metas:
            if isinstance(meta, Meta):
                bounds += [f"> {meta.gt:g}"] if meta.gt is not None else []
                bounds += [f"≥ {meta.ge:g}"] if meta.ge is not None else []
                bounds += [f"≤ {meta.le:,.0f}"] if meta.le is not None else []
    if get_origin(hint) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(hint))
    names = {Secret: "secret", str: "text", int: "integer", float: "number", bool: "boolean"}
    name = names.get(hint, "list, by comma")
    return ", ".join([name, *bounds])


def _default(value: object) -> str:
    if value is msgspec.NODEFAULT:
        return "required"
    if isinstance(value, Secret):
        return ""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    text = text.lower() if isinstance(value, bool) else text
    return f"`{text}`" if text else ""


def metrics_of(service: str) -> list[MetricDescription]:
    """Return the metrics of a service, in the order of their names."""
    module, _ = SERVICES[service]
    done = subprocess.run(  # noqa: S603 (a program and names of this file)
        [sys.executable, "-c", LIST_METRICS, module], capture_output=True, check=True
    )
    return msgspec.json.decode(done.stdout, type=list[MetricDescription])


def _metrics_table(metrics: list[MetricDescription]) -> Iterator[str]:
    yield "| metric | type | labels | unit | meaning | normal |"
    yield "|---|---|---|---|---|---|"
    for one in metrics:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        cells = (f"`{one.name}`", one.kind, labels, one.unit, one.about, one.normal)
        yield f"| {' | '.join(map(_cell, cells))} |"


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    context.terminal_width = context.max_content_width = WIDTH
    context.help_option_names = ["-h", "--help"]
    yield from ("", f"## {context.command_path}", "", "```text", command.get_help(context), "```")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if child := command.get_command(context, name):
                yield from _command(child, click.Context(child, parent=context, info_name=name))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the pages, or compare them; return the exit code."""
    is_check = sys.argv[1:] == ["--check"]
    stale = []
    for name, page in PAGES.items():
        text = NOTICE + "\n".join(line.rstrip() for line in "\n".join(page()).splitlines()) + "\n"
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not is_check:
                path.write_text(text)
    for name in stale:
        print(f"docs/reference/{name}", "is out of date: make reference" if is_check else "written")
    return int(is_check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
