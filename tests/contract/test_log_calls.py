"""Every log call of the code: a constant event, and fields whose types are declared."""

import re
import runpy
from collections import defaultdict
from typing import Any, Final

from scoreboard.runtime.audit import ACTIONS
from scoreboard.runtime.log_fields import FIELDS, LINE_FIELDS
from tests.support.repository import ROOT

FOUND: Final[list[Any]] = list(runpy.run_path(str(ROOT / "docs/log_calls.py"))["log_calls"]())
CALLS: Final = [one for one in FOUND if one.level != "audit"]
AUDITS: Final = [one for one in FOUND if one.level == "audit"]
EVENT: Final = re.compile(r"[a-z]+(_[a-z]+)+")


def test_events_are_constants_in_snake_case() -> None:
    wrong = [f"{one.module}:{one.line}" for one in CALLS if not EVENT.fullmatch(one.event)]

    assert len(CALLS) > 80
    assert wrong == []


def test_every_field_is_declared_with_its_type() -> None:
    declared = {*FIELDS, "exc_info", "trace"}
    unknown = [
        f"{one.module}:{one.line} {field}"
        for one in FOUND
        for field in one.fields
        if field not in declared and (one in CALLS or field is not None)
    ]

    assert unknown == []


def test_actions_of_audit_lines_are_declared() -> None:
    assert len(AUDITS) > 5
    assert {one.event for one in AUDITS if one.event} <= set(ACTIONS)


def test_actions_of_the_audit_log_are_declared() -> None:
    """Every action that is inserted into audit_log has a class in the audit stream."""
    sources = [
        path
        for folder in ("cli", "flusher", "scoreboard")
        for path in (ROOT / folder).rglob("*.py")
    ]
    text = "\n".join(path.read_text() for path in sources)
    inserted = set(re.findall(r'action="([a-z ]+)"', text)) | {"dead apply", "dead discard"}

    assert "backup record" in inserted
    assert inserted <= set(ACTIONS)


def test_names_of_fields_are_unique() -> None:
    names = [field.name for field in FIELDS.values()]

    assert len(names) == len({*names, *LINE_FIELDS}) - len(LINE_FIELDS)


def test_no_field_is_also_the_parent_of_another() -> None:
    names = {field.name for field in FIELDS.values()} | set(LINE_FIELDS)
    parents = {name.rsplit(".", depth)[0] for name in names for depth in range(1, 4)}

    assert {name for name in names if name in parents and "." in name} == set()


def test_an_event_is_logged_in_one_area() -> None:
    areas: dict[str, set[str]] = defaultdict(set)
    for one in CALLS:
        areas[one.event].add(one.level)

    assert {event: levels for event, levels in areas.items() if len(levels) > 2} == {}
