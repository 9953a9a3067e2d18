"""Boards as a file in TOML: read it, write it, and plan the changes that make the boards match it.

A table ``[boards.NAME]`` describes a board; every key has a default. The plan creates boards, and
sets whether they are public or archived, and their limits. It never deletes a board: those that the
file omits are not touched. What is fixed when a board is created must be as it is.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from scoreboard.errors import Invalid, OperatorMistake
from scoreboard.ledger.load_tests import refuse_load_test_name
from scoreboard.model import (
    BOARD_FORM,
    NO_LIMITS,
    SCORE_MAX,
    Board,
    Layout,
    Limits,
    Lowering,
    Operator,
    Order,
    PointsFrom,
    Rules,
    check_limits,
    is_board_name,
)
from scoreboard.recovery.board_changes import make_rules
from scoreboard.violations import describe_violation

FILE_BYTES_MAX: Final = 4_000_000
"""Ten thousand boards with all keys need about half of it."""

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_RULE_KEYS: Final = {"score_min": "min", "score_max": "max"}
"""Keys of the file by field of Rules, where they differ."""
_LIMIT_KEYS: Final = {
    "per_action": "max_points_per_action",
    "per_window": "max_points_per_window",
    "window_s": "window_seconds",
}
"""Keys of the file by field of Limits; 0 is no limit."""


_SEASON_KEYS: Final = frozenset({"season", "time_zone"})
"""Keys that only a board with seasons has."""


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    """A board in the file. Omitted parts of a layout and limits stay as the board has them."""

    operator: Operator = "add"
    order: Order = "highest"
    score_min: int = field(default=0, name="min")
    score_max: int = field(default=SCORE_MAX, name="max")
    lowering: Lowering = "nobody"
    points: PointsFrom = "catalogue"
    season: str = ""
    time_zone: str = ""
    public: bool = True
    archived: bool = False
    partitions: int | UnsetType = UNSET
    seen_seconds: int | UnsetType = UNSET
    seen_shards: int | UnsetType = UNSET
    per_action: int | UnsetType = field(default=UNSET, name="max_points_per_action")
    per_window: int | UnsetType = field(default=UNSET, name="max_points_per_window")
    window_s: int | UnsetType = field(default=UNSET, name="window_seconds")


class Change(Struct, frozen=True):
    """A step of the plan."""

    board: str
    what: str
    """Create, open, publish, hide, archive, unarchive or limit."""
    new: Board


def read_boards(path: Path) -> dict[str, Board]:
    """Read the boards of a file, with defaults for omitted parts of layouts.

    Raises OSError, Invalid, which names the board and the key.
    """
    return {name: _board(name, table) for name, table in _read_tables(path).items()}


def plan_changes(path: Path, existing: Mapping[str, Board]) -> list[Change]:
    """Compare a file with the boards that exist; return the steps, in the order of the file.

    Raises OSError; Invalid; OperatorMistake if the file changes what is fixed.
    """
    changes: list[Change] = []
    for name, table in _read_tables(path).items():
        old = existing.get(name)
        new = _board(name, table, NO_LIMITS if old is None else old.limits)
        if old is None:
            refuse_load_test_name(name)
            changes.append(Change(name, "create", msgspec.structs.replace(new, state="open")))
            old = msgspec.structs.replace(new, state="open")
        else:
            _require_same(table, new, old)
        if new.is_public != old.is_public:
            changes.append(Change(name, "publish" if new.is_public else "hide", new))
        if new.limits != old.limits:
            changes.append(Change(name, "limit", new))
        if new.state != old.state:
            changes.append(Change(name, "archive" if new.state == "archived" else "unarchive", new))
    return changes


def write_boards(boards: Iterable[Board]) -> list[str]:
    """Return the lines of a file with these boards and all keys."""
    lines = ["# Boards; apply changes with: scoreboard board apply FILE"]
    for board in boards:
        rules, layout = board.layout.rules, board.layout
        values: dict[str, object] = {
            **{
                _RULE_KEYS.get(name, name): value
                for name, value in _fields(rules)
                if name not in _SEASON_KEYS or value
            },
            "public": board.is_public,
            "archived": board.state == "archived",
            **{name: value for name, value in _fields(layout) if name != "rules"},
            **{_LIMIT_KEYS[name]: value for name, value in _fields(board.limits)},
        }
        key = board.name if _BARE.fullmatch(board.name) else f'"{board.name}"'
        lines += ["", f"[boards.{key}]"]
        # Words, numbers and booleans are the same in TOML and in JSON.
        lines += [
            f"{name} = {msgspec.json.encode(value).decode()}" for name, value in values.items()
        ]
    return lines


def _read_tables(path: Path) -> dict[str, _Table]:
    with path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise Invalid(f"{path} has more than {FILE_BYTES_MAX} bytes")
    try:
        document: dict[str, Any] = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{path} is not TOML: {error}") from None
    tables: Any = document.pop("boards", {})
    if document or not isinstance(tables, dict):
        extra = ", ".join(sorted(document)) or "boards"
        raise Invalid(f"{path} has only tables [boards.NAME]; remove: {extra}")
    return {name: _parse(name, table) for name, table in tables.items()}


def _parse(name: str, table: object) -> _Table:
    if not is_board_name(name):
        raise Invalid(f"Board {name}: a board name has {BOARD_FORM}")
    try:
        return msgspec.convert(table, _Table)
    except msgspec.ValidationError as error:
        raise Invalid(f"Board {name}: {describe_violation(error, _Table)}") from None


def _board(name: str, table: _Table, limits: Limits = NO_LIMITS) -> Board:
    named = {field: getattr(table, field) for field in Rules.__struct_fields__}
    defaults = Layout()
    parts = {
        field: getattr(defaults, field) if value is UNSET else value
        for field, value in _parts(table)
    }
    try:
        layout = Layout(**parts, rules=make_rules(Rules(**named)))
        Layout.parse(str(layout))
        stated = {field: getattr(table, field) for field in _LIMIT_KEYS}
        limits = msgspec.structs.replace(
            limits, **{field: value for field, value in stated.items() if value is not UNSET}
        )
        check_limits(limits, layout.rules)
    except (ValueError, Invalid) as error:
        raise Invalid(f"Board {name}: {error}") from None
    return Board(name, layout, table.public, "archived" if table.archived else "open", limits)


def _require_same(table: _Table, new: Board, old: Board) -> None:
    pairs = zip(_fields(new.layout.rules), _fields(old.layout.rules), strict=True)
    for (name, value), (_, held) in pairs:
        if value != held:
            key = _RULE_KEYS.get(name, name)
            raise OperatorMistake(
                f"Board {new.name}: {key} is {_shown(held)} and cannot be changed to "
                f"{_shown(value)}; the rules of a board are fixed when it is created. Create a "
                "board with another name"
            )
    for name, value in _parts(table):
        held = getattr(old.layout, name)
        if value is not UNSET and value != held:
            raise OperatorMistake(
                f"Board {new.name}: {name} is {held} in PostgreSQL and {value} in the file; a "
                "layout is changed by a reseed (docs/how-to/change-a-layout.md)"
            )


def _shown(value: str | int) -> str | int:
    return "none" if value == "" else value


def _parts(table: _Table) -> Sequence[tuple[str, Any]]:
    return [(name, getattr(table, name)) for name in Layout.__struct_fields__ if name != "rules"]


def _fields(struct: Struct) -> list[tuple[str, Any]]:
    return list(msgspec.structs.asdict(struct).items())
