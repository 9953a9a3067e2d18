"""Decodes the bodies of requests: the one place where JSON becomes a request.

Invariant: values are not converted: `"5"` is refused for a number, and 1 for true.
"""

import json
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from api.documents.forms import ALL_FORMS
from scoreboard.errors import Invalid, Malformed
from scoreboard.violations import describe_violation

_T = TypeVar("_T")
_ALL: Final = "a JSON object"


def body_decoder(kind: type[_T], example: str = _ALL) -> Callable[[bytes], _T]:
    """Return a function that decodes bodies of one type; ``example`` is for its messages.

    It raises Malformed for a body that is not JSON, Invalid for a value that violates the type.
    """
    decode = msgspec.json.Decoder(kind).decode

    def decode_body(body: bytes) -> _T:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            raise Invalid(describe_violation(error, kind, ALL_FORMS)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            what = "not JSON" if body else "empty"
            raise Malformed(f"The body is {what}; send {example}") from None

    return decode_body


def require_distinct_fields(body: bytes) -> None:
    """Check that no object of a body, which was decoded before, has a field twice.

    Raises Malformed.
    """
    json.loads(body, object_pairs_hook=_require_distinct)


def _require_distinct(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise Malformed(f"Do not repeat the field {repeated}")
