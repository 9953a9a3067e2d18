"""Messages about values name fields as JSON does, and contain no expression or Python type."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, Struct

from scoreboard.model import BoardName, UserId
from scoreboard.violations import describe_violation


class Rules(Struct, forbid_unknown_fields=True, rename="camel"):
    operator: Literal["add", "best"] = "add"
    window_s: int = 0

    def __post_init__(self) -> None:
        if self.window_s == 13:
            raise ValueError("windowS must not be 13")


class Sent(Struct, forbid_unknown_fields=True, rename="camel"):
    user_id: UserId
    boards: Annotated[tuple[BoardName, ...], Meta(min_length=1, max_length=2)] = ("main",)
    delta: Annotated[int, Meta(ge=-5, le=5)] | None = None
    since: Annotated[datetime, Meta(tz=True)] | msgspec.UnsetType = msgspec.UNSET
    public: bool = True
    rules: Rules | msgspec.UnsetType = msgspec.UNSET
    code: Annotated[str, Meta(pattern="^x$")] = "x"


CASES: list[tuple[Any, str]] = [
    ([], "the value must be an object"),
    ({}, "userId is missing"),
    ({"userId": 5}, "userId must be a string"),
    ({"userId": "a b"}, "userId must be 1 to 128 characters of A-Z a-z 0-9 . _ | : @ -"),
    ({"userId": ""}, "userId must not be empty"),
    ({"boards": []}, "boards must not be empty"),
    ({"boards": ["A"]},
     "boards[0] must be 1 to 32 characters of a-z 0-9 _ . -, other than . and .."),
    ({"boards": "main"}, "boards must be a list"),
    ({"delta": "5"}, "delta must be an integer"),
    ({"delta": 6}, "delta must be at most 5"),
    ({"delta": -6}, "delta must be at least -5"),
    ({"since": 1}, "since must be a time with its zone, such as 2026-11-27T08:00:00Z"),
    ({"since": "2026"}, "since must be a time with its zone, such as 2026-11-27T08:00:00Z"),
    ({"since": "2026-11-27T08:00:00"},
     "since must be a time with its zone, such as 2026-11-27T08:00:00Z"),
    ({"public": 1}, "public must be true or false"),
    ({"rules": {"operator": "x"}}, "rules.operator must be one of add, best"),
    ({"rules": {"windowS": 13}}, "rules: windowS must not be 13"),
    ({"rules": {"colour": 1}}, "rules has no field colour"),
    ({"colour": 1}, "there is no field colour"),
    ({"a\n" * 9: 1}, "there is no field that name"),
    ({"code": "y"}, "code must have another form"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "expected"), CASES)
def test_a_violation_is_described_by_the_name_of_the_field(sent: Any, expected: str) -> None:
    if isinstance(sent, dict) and sent and "userId" not in sent:
        sent = {"userId": "alice"} | sent

    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(msgspec.json.encode(sent), type=Sent)

    assert describe_violation(caught.value, Sent) == expected
