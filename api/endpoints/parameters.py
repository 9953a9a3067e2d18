"""Reads the parameters of requests strictly, before the framework does, which converts more.

Invariant: a number has one form, so that every cache, log and limit sees one request as one.
"""

import re
from collections.abc import Mapping
from functools import cache
from types import NoneType
from typing import Annotated, Any, Final, get_args
from urllib.parse import urlencode

import msgspec
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import PathParameter, QueryParameter
from litestar.typing import FieldDefinition
from msgspec import Meta, Struct

from api.documents.forms import ALL_FORMS, name_in_json
from api.endpoints.fast_reads import IDS
from scoreboard.errors import Invalid
from scoreboard.http.query import parse_query
from scoreboard.violations import describe_violation

_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_LIMITS: Final = ("ge", "le", "pattern", "min_length", "max_length")
_BOOLEANS: Final = {"true": True, "false": False}


class _Parameters(Struct, frozen=True):
    """The parameters of a handler, by their names in the API."""

    query: Mapping[str, type]
    path: Mapping[str, tuple[str, type]]
    """Those of the path by the handler's name, with the one of the API."""
    required: tuple[str, ...]
    model: Any
    """A type whose fields are all parameters that have constraints."""


async def read_parameters(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """Check path and query (a guard): known parameters, each at most once except for lists.

    The framework then gets the query in an unambiguous form.
    """
    known = _parameters_of(handler)
    values = parse_query(
        connection.scope["query_string"],
        known.query,
        joined=IDS if IDS in known.query else None,
    )
    for name in known.required:
        if name not in values:
            raise Invalid(f"The parameter {name} is missing")
    found = {name: _parse(name, text, known.query[name]) for name, text in values.items()}
    for name, (shown, kind) in known.path.items():
        found[shown] = _parse(shown, str(connection.path_params[name]), kind)
    try:
        msgspec.convert(found, known.model)
    except msgspec.ValidationError as error:
        raise Invalid(describe_violation(error, known.model, ALL_FORMS)) from None
    connection.state["board_name"] = values.get("board")
    connection.scope["query_string"] = urlencode(values).encode()


def _parse(name: str, text: str, kind: type) -> object:
    """Return the value of a parameter.

    Raises Invalid for another form of an integer or boolean.
    """
    if kind is int:
        if not _INTEGER.fullmatch(text):
            raise Invalid(f"{name} must be an integer")
        return int(text)
    if kind is bool:
        if text not in _BOOLEANS:
            raise Invalid(f"{name} must be true or false")
        return _BOOLEANS[text]
    return text


@cache
def _parameters_of(handler: BaseRouteHandler) -> _Parameters:
    query: dict[str, type] = {}
    path: dict[str, tuple[str, type]] = {}
    required: list[str] = []
    fields: list[tuple[str, Any, Any]] = []
    for name, field in handler.parsed_fn_signature.parameters.items():
        about = field.kwarg_definition
        if isinstance(about, QueryParameter):
            shown = about.name or name
            query[shown] = _bare(field)
            if field.is_required:
                required.append(shown)
        elif isinstance(about, PathParameter):
            shown = name_in_json(name)
            path[name] = shown, _bare(field)
        else:
            continue
        limits: dict[str, Any] = {name: getattr(about, name) for name in _LIMITS}
        fields.append((shown, Annotated[_bare(field), Meta(**limits)], msgspec.UNSET))
    model = msgspec.defstruct("Parameters", fields)
    return _Parameters(query, path, tuple(sorted(required)), model)


def _bare(field: FieldDefinition) -> type[Any]:
    """Return the type of a parameter; an optional one is omitted instead of null."""
    kinds = [one for one in get_args(field.annotation) if one is not NoneType]
    return kinds[0] if field.is_optional and kinds else field.annotation
