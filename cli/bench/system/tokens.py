"""The users of a load and their tokens: of the local issuer, or from a file.

Tokens are never on a command line, in an output or in a message.
"""

import base64
import binascii
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cli.bench.generator.requests import User
from cli.bench.system.session import Target
from cli.target import load_issuer
from scoreboard.errors import OperatorMistake
from scoreboard.security.tokens import READ, UPDATE, UPDATE_ANY

TOKEN_LIFE_S: Final = 4 * 3600
TOKENS_MAX: Final = 100_000


class _Claims(Struct):
    sub: str
    scope: str = ""


def make_users(
    target: Target, board: str, *, count: int, token_file: Path | None, is_trusted: bool
) -> list[User]:
    """Return the users of a load.

    With one token that has `update:score:any`, or with ``is_trusted``, all users share the token;
    else each has one. In a file a line has a token, also after its user as `scoreboard token
    --users` prints it. Users made here are named after the board and are deleted with its rows.

    Raises OperatorMistake if there is no token.
    """
    names = [f"{board}.{number:06d}" for number in range(count)]
    if token_file is not None:
        return _read_users(token_file, names)
    if target.data_dir is None:
        raise OperatorMistake(
            "The load needs tokens: give --token-file with one token per line, or with one that "
            f"has the scope {UPDATE_ANY}"
        )
    issuer, audience = load_issuer(target.data_dir), target.settings.audience
    if is_trusted:
        token = issuer.issue(board, [UPDATE_ANY, READ], TOKEN_LIFE_S, audience=audience)
        return [User(name, token) for name in names]
    return [
        User(name, issuer.issue(name, [UPDATE, READ], TOKEN_LIFE_S, audience=audience))
        for name in names
    ]


def _read_users(token_file: Path, names: list[str]) -> list[User]:
    text = token_file.read_text(encoding="ascii", errors="replace")
    lines = [line.split()[-1] for line in text.splitlines() if line.strip()]
    if not 0 < len(lines) <= TOKENS_MAX:
        raise OperatorMistake(f"{token_file} has {len(lines)} tokens, not 1 to {TOKENS_MAX}")
    users: list[User] = []
    for number, token in enumerate(lines, 1):
        try:
            claims = _read_claims(token)
        except (ValueError, binascii.Error, msgspec.MsgspecError):
            raise OperatorMistake(f"Line {number} of {token_file} is not a JWT") from None
        if UPDATE_ANY in claims.scope.split():
            return [User(name, token) for name in names]
        users.append(User(claims.sub, token))
    return users


def _read_claims(token: str) -> _Claims:
    _, payload, _ = token.split(".")
    return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=="), type=_Claims)
