"""Every log call of the code: a constant event, and fields whose types are declared."""

import re
import runpy
from collections import defaultdict
from typing import Any, Final, get_args

import pytest

from scoreboard.ledger.acts import ActKind
from scoreboard.runtime.audit import ACTIONS
from scoreboard.runtime.log_fields import FIELDS, LINE_FIELDS
from tests.support.repository import ROOT

EVENT: Final = re.compile(r"[a-z]+(_[a-z]+)+")


@pytest.fixture(scope="module")
def found() -> list[Any]:
    """Return all log calls and audit lines."""
    return list(runpy.run_path(str(ROOT / "docs/log_calls.py"))["log_calls"]())


@pytest.fixture(scope="module")
def calls(found: list[Any]) -> list[Any]:
    return [one for one in found if one.level != "audit"]


@pytest.fixture(scope="module")
def audits(found: list[Any]) -> list[Any]:
    return [one for one in found if one.level == "audit"]


def test_events_are_constants_in_snake_case(calls: list[Any]) -> None:
    wrong = [f"{one.module}:{one.line}" for one in calls if not EVENT.fullmatch(one.event)]

    assert len(calls) > 80
    assert wrong == []


def test_every_field_is_declared_with_its_type(found: list[Any], calls: list[Any]) -> None:
    declared = {*FIELDS, "exc_info", "trace"}
    unknown = [
        f"{one.module}:{one.line} {field}"
        for one in found
        for field in one.fields
        if field not in declared and (one in calls or field is not None)
    ]

    assert unknown == []


def test_actions_of_audit_lines_are_declared(audits: list[Any]) -> None:
    assert len(audits) > 5
    assert {one.event for one in audits if one.event} <= set(ACTIONS)


def test_actions_of_the_audit_log_are_declared() -> None:
    """Every action that is inserted into audit_log has a class in the audit stream."""
    sources = [
        path
        for folder in ("cli", "flusher", "scoreboard")
        for path in (ROOT / folder).rglob("*.py")
    ]
    text = "\n".join(path.read_text() for path in sources)
    inserted = set(re.findall(r'action="([a-z ]+)"', text)) | {"dead apply", "dead discard"}
    inserted |= {f"act {kind}" for kind in get_args(ActKind)}

    assert "backup record" in inserted
    assert inserted <= set(ACTIONS)


def test_names_of_fields_are_unique() -> None:
    names = [field.name for field in FIELDS.values()]

    assert len(names) == len({*names, *LINE_FIELDS}) - len(LINE_FIELDS)


def test_no_field_is_also_the_parent_of_another() -> None:
    names = {field.name for field in FIELDS.values()} | set(LINE_FIELDS)
    parents = {name.rsplit(".", depth)[0] for name in names for depth in range(1, 4)}

    assert {name for name in names if name in parents and "." in name} == set()


def test_an_event_is_logged_in_one_area(calls: list[Any]) -> None:
    areas: dict[str, set[str]] = defaultdict(set)
    for one in calls:
        areas[one.event].add(one.level)

    assert {event: levels for event, levels in areas.items() if len(levels) > 2} == {}
