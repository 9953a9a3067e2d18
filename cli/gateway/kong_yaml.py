"""Reads Kong's YAML: the template and rendered configurations. Strict, bounded, one line per fault.

Called by cli.commands.kong, cli.gateway.config and cli.gateway.keys. What stays true: a document
that is read has the shape its reader needs, names no key twice and shares nothing between its
parts.
"""

from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
import yaml

from scoreboard.errors import OperatorMistake

BYTES_MAX: Final = 1_048_576
"""A rendered configuration has some 20 KB."""

NODES_MAX: Final = 100_000
"""Most values of a document with its anchors written out; a rendered one has some 500."""

Entity = dict[str, Any]
T = TypeVar("T")


def read_text(path: Path) -> str:
    """Read a file of configuration.

    Raises OperatorMistake where it is none that can be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise OperatorMistake(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > BYTES_MAX:
        raise OperatorMistake(f"{path} has more than {BYTES_MAX} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise OperatorMistake(f"{path} is not UTF-8 at byte {error.start}") from error


def parse(text: str, shape: type[T], what: str) -> tuple[Entity, T]:
    """Return a document as plain mappings and, checked, as a ``shape``; ``what`` names it.

    Raises OperatorMistake where it is not YAML, or of another shape.
    """
    try:
        document = _unshared(yaml.load(text, Loader=_Loader), [NODES_MAX])  # noqa: S506 (is safe)
        return cast("Entity", document), msgspec.convert(document, shape)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise OperatorMistake(f"{what} is not valid YAML: {error.problem}{where}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # msgspec's errors are ValueErrors, as are those of odd dates and numbers.
        is_deep = isinstance(error, RecursionError)
        words = "it is nested too deeply" if is_deep else " ".join(str(error).split())
        raise OperatorMistake(f"{what} cannot be used: {words}") from error


class _Loader(yaml.SafeLoader):
    """Plain YAML, in which a repeated key is an error; PyYAML would take its last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is not a scalar", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _unshared(value: object, left: list[int]) -> object:
    """Copy what anchors share, so that a change in one place stays there.

    ``left`` holds how many more values there may be: anchors can stand for very many.
    """
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("its anchors expand to too many values")
    if isinstance(value, dict):
        return {key: _unshared(item, left) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item, left) for item in value]
    return value
