"""Says in a sentence which value violates its type, by its name in JSON. No I/O.

msgspec's messages name Python types and expressions; who sends a request or edits a file knows
neither.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect

from scoreboard.model import FORMS

MOMENT_FORM: Final = "a time with its zone, such as 2026-11-27T08:00:00Z"
_TYPES: Final = {
    "array": "a list",
    "bool": "true or false",
    "datetime": MOMENT_FORM,
    "float": "a number",
    "int": "an integer",
    "int | float": "a number",
    "object": "an object",
    "str": "a string",
}
_UNITS: Final = {"str": "characters", "array": "items", "object": "fields"}
_BOUNDS: Final = {">=": "at least", "<=": "at most"}
_PLACE: Final = re.compile(r"(.*) - at `(?:key in )?\$(.*)`", re.DOTALL)
_INDEX: Final = re.compile(r"^\[(\d+)\]")
_TYPE: Final = re.compile(r"Expected `(.+?)`, got `(.+?)`")
_LENGTH: Final = re.compile(r"Expected `(\w+)` of length ([<>]=) (\d+)")
_RANGE: Final = re.compile(r"Expected `\w+` ([<>]=) (-?[\d.]+)")
_PATTERN: Final = "Expected `str` matching regex "
_FIELD: Final = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_SHOWN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
"""Names of unknown fields that a message may repeat."""


def describe_violation(
    error: msgspec.ValidationError, kind: object, forms: Mapping[str, str] = FORMS
) -> str:
    """Return what is wrong with a value that was decoded or converted as ``kind``.

    ``forms`` has a text for each pattern of the type. Messages of the types' own checks are kept.
    """
    text, path = str(error), ""
    if found := _PLACE.fullmatch(text):
        text, path = found.groups()
    name = _INDEX.sub(lambda index: f"item {int(index[1]) + 1}", path.removeprefix("."))
    if found := _FIELD.fullmatch(text):
        return _describe_field(found[1] == "missing required", name, found[2])
    if text.startswith("Invalid enum value"):
        words = ", ".join(map(str, _choices(inspect.type_info(kind), name)))
        return f"{name} must be one of {words}" if words else f"{name} has an unknown value"
    must = _describe_constraint(text, forms)
    if must:
        return f"{name or 'the value'} must {must}"
    return f"{name}: {text}" if name else text


def _describe_constraint(text: str, forms: Mapping[str, str]) -> str:
    must = ""
    if text.startswith(_PATTERN):
        known = {_PATTERN + repr(pattern): f"be {form}" for pattern, form in forms.items()}
        must = known.get(text, "have another form")
    elif found := _TYPE.fullmatch(text):
        expected = found[1].removesuffix(" | null")
        must = f"be {_TYPES.get(expected, expected)}"
    elif found := _LENGTH.fullmatch(text):
        kind, bound, size = found.groups()
        is_empty = (bound, size) == (">=", "1")
        must = "not be empty" if is_empty else f"have {_BOUNDS[bound]} {size} {_UNITS[kind]}"
    elif found := _RANGE.fullmatch(text):
        must = f"be {_BOUNDS[found[1]]} {found[2]}"
    elif "datetime" in text:  # without a zone, or in another form
        must = f"be {MOMENT_FORM}"
    return must


def _describe_field(is_missing: bool, name: str, field: str) -> str:
    shown = field if _SHOWN.fullmatch(field) else "that name"
    where = f"{name} has" if name else "there is"
    if is_missing:
        return f"{name}.{field} is missing" if name else f"{field} is missing"
    return f"{where} no field {shown}"


def _choices(kind: inspect.Type, name: str) -> tuple[Any, ...]:
    """Return the allowed values of a field; ``name`` is its path."""
    match kind:
        case inspect.Metadata(type=inner):
            return _choices(inner, name)
        case inspect.UnionType(types=types):
            return next(filter(None, (_choices(one, name) for one in types)), ())
        case inspect.StructType(fields=fields):
            first, _, rest = name.partition(".")
            return next(
                (_choices(one.type, rest) for one in fields if one.encode_name == first), ()
            )
        case inspect.LiteralType(values=values):
            return values
        case _:
            return ()
