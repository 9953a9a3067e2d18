"""The documents of logins, and their passwords."""

import secrets
from typing import Any, Final, Literal

import msgspec

from scoreboard.errors import OperatorMistake, SecretsUnavailable
from scoreboard.runtime.settings import Secret
from scoreboard.security.secret_backends import Credentials, parse

PASSWORD_BYTES: Final = 32
"""43 characters of A-Z a-z 0-9 _ -, which need no quoting anywhere."""


def new_password() -> str:
    """Return a random password."""
    return secrets.token_urlsafe(PASSWORD_BYTES)


def read_login(document: Secret, stage: Literal["current", "pending", "previous"]) -> Credentials:
    """Return the login of a document; ``stage`` is for the error.

    Raises OperatorMistake if it is not a login.
    """
    try:
        return parse(f"The {stage} version", document.reveal().encode(), "")
    except SecretsUnavailable as error:
        raise OperatorMistake(error.detail) from None


def replace_login(document: Secret, username: str) -> Secret:
    """Return a document with another user and a new password; its other members are kept."""
    members = msgspec.json.decode(document.reveal().encode(), type=dict[str, Any])
    members |= {"username": username, "password": new_password()}
    return Secret(msgspec.json.encode(members).decode())
