"""The types of log fields: a field has one type in every line, whatever the code passes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoreboard.runtime.log_fields import FIELDS, ITEMS_MAX, LABELS_MAX, LINE_FIELDS, convert

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
TYPES: dict[str, type | tuple[type, ...]] = {
    "keyword": str,
    "wildcard": str,
    "match_only_text": str,
    "ip": str,
    "long": int,
    "double": float,
    "boolean": bool,
}


def line(**values: Any) -> dict[str, Any]:
    return dict(convert(values))


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(), VALUES, max_size=8))
def test_every_value_has_the_type_of_its_field(values: dict[str, Any]) -> None:
    types: dict[str, Any] = dict(LINE_FIELDS) | {one.name: one.type for one in FIELDS.values()}

    found = dict(convert(values))

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for name, value in found.items():
        for item in value if isinstance(value, list) else [value]:
            if name.startswith("labels."):
                assert isinstance(item, str)
            else:
                assert type(item) is TYPES[types[name]], (name, item)
                assert not isinstance(item, int) or abs(item) < 2**63


def test_a_value_of_another_type_becomes_a_label() -> None:
    assert line(seq="7", status=True, is_loaded=1) == {
        "labels.seq": "7",
        "labels.status": "True",
        "labels.is_loaded": "1",
    }


def test_an_unknown_name_becomes_a_label() -> None:
    assert line(**{"a.b c": {"x": 1}}) == {"labels.a_b_c": '{"x": 1}'}


def test_a_duration_is_in_nanoseconds() -> None:
    assert line(duration_s=0.0015) == {"event.duration": 1_500_000}


@pytest.mark.parametrize("address", ["", "unix:", "2001:db8::/64", "a.example"])
def test_a_client_without_an_ip_address_has_only_an_address(address: str) -> None:
    assert line(client=address) == {"client.address": address}


def test_a_client_has_its_ip_address() -> None:
    assert line(client="192.0.2.1") == {"client.address": "192.0.2.1", "client.ip": "192.0.2.1"}


def test_none_is_omitted() -> None:
    assert line(seq=None, code=None) == {}


def test_lists_and_labels_are_bounded() -> None:
    assert len(line(keys=list(range(1000)))["scoreboard.keys"]) == ITEMS_MAX
    assert len(line(**{f"x{number}": 1 for number in range(100)})) == LABELS_MAX


def test_lone_surrogates_are_escaped() -> None:
    assert line(path="a\udc80") == {"file.path": "a\\udc80"}


def test_names_are_those_of_ecs_or_of_this_project() -> None:
    listed = json.loads((Path(__file__).parents[1] / "support/data/ecs_fields.json").read_text())
    types: dict[str, str] = dict(LINE_FIELDS) | {one.name: one.type for one in FIELDS.values()}
    own = {name for name in types if re.fullmatch(r"scoreboard\.[a-z_.]+", name)}

    assert {name: kind for name, kind in types.items() if name not in own} == {
        name: kind for name, kind in listed["fields"].items() if name in types
    }
