"""Read Kong's YAML, the template and rendered configurations: strict, bounded, one-line errors.

Invariants: a parsed document has the shape that its reader needs, contains no duplicate key and
shares no value between its parts.
"""

from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
import yaml

from scoreboard.errors import OperatorMistake

BYTES_MAX: Final = 1_048_576
"""A rendered configuration has about 20 KB."""

NODES_MAX: Final = 100_000
"""Maximum values of a document with its anchors expanded; a rendered one has about 500."""

Entity = dict[str, Any]
T = TypeVar("T")


def read_text(path: Path) -> str:
    """Read a configuration file.

    Raises OSError, OperatorMistake if it is too large or not UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(BYTES_MAX + 1)
    if len(data) > BYTES_MAX:
        raise OperatorMistake(f"{path} is larger than {BYTES_MAX} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise OperatorMistake(f"{path} is not UTF-8 at byte {error.start}") from error


def parse(text: str, shape: type[T], what: str) -> tuple[Entity, T]:
    """Return a document as plain mappings and as a ``shape``; ``what`` names it in errors.

    Raises OperatorMistake if it is not YAML or has another shape.
    """
    try:
        document = _unshared(yaml.load(text, Loader=_Loader), [NODES_MAX])  # noqa: S506 (is safe)
        return cast("Entity", document), msgspec.convert(document, shape)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise OperatorMistake(f"{what} is not valid YAML: {error.problem}{where}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # msgspec raises ValueErrors, as PyYAML does for invalid dates and numbers.
        is_deep = isinstance(error, RecursionError)
        words = "it is nested too deeply" if is_deep else " ".join(str(error).split())
        raise OperatorMistake(f"{what} cannot be used: {words}") from error


class _Loader(yaml.SafeLoader):
    """Plain YAML in which a duplicate key is an error; PyYAML would use the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is not a scalar", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} appears twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _unshared(value: object, left: list[int]) -> object:
    """Copy values that anchors share, so that a change affects one place only.

    ``left`` holds the number of values still allowed, because anchors can expand to very many.
    """
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("its anchors expand to too many values")
    if isinstance(value, dict):
        return {key: _unshared(item, left) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item, left) for item in value]
    return value
