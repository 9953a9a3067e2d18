"""Packed scores, identifiers, partitions and layouts."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoreboard import model
from scoreboard.model import (
    NO_LIMITS,
    SCORE_MAX,
    SLOT_COUNT,
    Layout,
    Limits,
    Rules,
    check_limits,
    pack,
    unpack_score,
)

SCORES = st.integers(0, SCORE_MAX)
SLOTS = st.integers(0, SLOT_COUNT - 1)


@given(SCORES, SLOTS)
def test_packing_round_trips_and_is_exact_in_a_double(score: int, slot: int) -> None:
    packed = pack(score, slot)

    assert unpack_score(packed) == score
    assert int(float(packed)) == packed


@given(SCORES, SLOTS, SCORES, SLOTS)
def test_packed_scores_sort_by_score_then_by_arrival(a: int, p: int, b: int, q: int) -> None:
    assert (pack(a, p) < pack(b, q)) == ((a, p) < (b, q))


@pytest.mark.parametrize("text", ["a", "auth0|64f1", "x" * 128, "A.b_c-d:e@f|g", "0"])
def test_valid_identifiers_are_accepted(text: str) -> None:
    assert model.is_identifier(text)


@pytest.mark.parametrize("text", ["", "x" * 129, "a b", "a\n", "é", "a/b", "a,b", "a\0", "<b>"])
def test_invalid_identifiers_are_refused(text: str) -> None:
    assert not model.is_identifier(text)


@pytest.mark.parametrize("text", ["main", "a", "weekly-2026.w1", "x" * 32, "...", ".a", "a."])
def test_valid_board_names_are_accepted(text: str) -> None:
    assert model.is_board_name(text)


@pytest.mark.parametrize("text", ["", "Main", "x" * 33, "a{b", "a:b", "main\n", ".", ".."])
def test_invalid_board_names_are_refused(text: str) -> None:
    assert not model.is_board_name(text)


def test_only_canonical_uuids_are_their_own_preferred_id() -> None:
    canonical = "018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f11"
    others = [canonical.upper(), f"urn:uuid:{canonical}", canonical.replace("-", ""), "auth0|1"]

    rows = [model.user_uuid(text) for text in [canonical, *others]]

    assert rows[0] == uuid.UUID(canonical)
    assert len(set(rows)) == len(rows)
    assert all(row.version == 5 for row in rows[1:])


def test_digests_differ_where_concatenations_are_equal() -> None:
    assert model.digest_of("main", "ab", "c") != model.digest_of("main", "a", "bc")
    assert model.digest_of("main", "a", "b") != model.digest_of("mai", "na", "b")
    assert len(model.digest_of("main", "a", "b")) == 16


@given(st.text(alphabet="abc019|:", min_size=1), st.integers(1, 16))
def test_the_partition_of_a_user_is_in_range(user: str, partitions: int) -> None:
    assert 0 <= model.partition_of(user, partitions) < partitions


def test_users_keep_the_partitions_in_which_they_are_stored() -> None:
    users = ["alice", "bob", "carol", "dave", "auth0|64f1"]
    assert [model.partition_of(user, 4) for user in users] == [3, 0, 3, 0, 3]


def test_layouts_round_trip() -> None:
    layout = Layout(partitions=4, seen_seconds=60, seen_shards=8)

    assert Layout.parse(str(layout)) == layout


@pytest.mark.parametrize("text", ["", "1:2", "1:2:3:4", "0:1:1", "a:b:c"])
def test_invalid_layouts_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Layout.parse(text)


@pytest.mark.parametrize(
    ("action", "kind"), [("win:1", "win"), ("win:a:b", "win"), ("plain", ""), (":x", "")]
)
def test_the_kind_of_an_action_is_the_text_before_its_first_colon(action: str, kind: str) -> None:
    assert model.kind_of(action) == kind


RULES = st.builds(
    Rules,
    st.sampled_from(["add", "best", "last"]),
    st.sampled_from(["highest", "lowest"]),
    st.integers(0, 1000),
    st.integers(1001, SCORE_MAX),
    st.sampled_from(["nobody", "trusted", "players"]),
    st.sampled_from(["catalogue", "stated"]),
)


@given(RULES)
def test_rules_are_part_of_a_layout(rules: Rules) -> None:
    layout = Layout(3, 60, 4, rules)
    assert Layout.parse(str(layout)) == layout
    assert Rules.parse(str(rules)) == rules


def test_the_default_rules_are_not_part_of_the_text() -> None:
    """Versions before the rules can then use the board."""
    assert str(Layout()) == "1:43200:64"
    assert Layout.parse("1:43200:64").rules == Rules()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "add",
        "add:highest:0:100:nobody",
        "sum:highest:0:100:nobody:catalogue",
        "add:up:0:100:nobody:catalogue",
        "add:highest:-1:100:nobody:catalogue",
        "add:highest:0:2147483648:nobody:catalogue",
        "add:highest:5:5:nobody:catalogue",
        "add:highest:0:1e5:nobody:catalogue",
        "add:highest:0:100:all:catalogue",
        "add:highest:0:100:nobody:catalogue:more",
        "add:highest:0:100:nobody:catalogue\n",
    ],
)
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Rules.parse(text)
    with pytest.raises(ValueError, match=r".+"):
        Layout.parse(f"1:43200:64:{text}")


@pytest.mark.parametrize(
    "limits", [NO_LIMITS, Limits(5), Limits(0, 9, 60), Limits(SCORE_MAX, SCORE_MAX, 31 * 86_400)]
)
def test_limits_round_trip_and_parts_of_later_versions_are_ignored(limits: Limits) -> None:
    assert Limits.parse(str(limits)) == limits
    assert not limits.per_action or Limits.parse(f"{limits}:7:x") == limits


@pytest.mark.parametrize(
    "text",
    ["5", "5:5", "a:b:c", "-1:0:0", "2147483648:0:0", "0:5:0", "0:0:60", "0:5:9", "0:5:2678401"],
)
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Limits.parse(text)


def test_a_board_with_values_has_no_limit_of_a_window() -> None:
    check_limits(Limits(5), Rules("best"))
    with pytest.raises(ValueError, match="operator add"):
        check_limits(Limits(0, 5, 60), Rules("best"))
