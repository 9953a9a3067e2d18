"""From the Authorization header to a caller, and what a caller may do.

The token alone decides: no header that a gateway sets is read for identity.
"""

from collections.abc import Mapping

from scoreboard.errors import Forbidden
from scoreboard.security.tokens import (
    READ,
    UPDATE,
    UPDATE_ANY,
    Caller,
    Verifier,
    bearer_token,
    unauthenticated,
)


async def authenticate(verifier: Verifier, headers: Mapping[bytes, bytes]) -> Caller:
    """Give the caller of a request.

    Raises Unauthenticated, KeysUnavailable.
    """
    return await verifier.verify(bearer_token(headers.get(b"authorization")))


def require_reader(caller: Caller) -> None:
    """Let pass who may read boards that are not public.

    Raises Forbidden, naming the missing scope.
    """
    if not caller.has(READ):
        raise Forbidden(f"The token needs the scope {READ}", scope=READ)


def require_updater(caller: Caller) -> bool:
    """Let pass who may update; tell whether for anyone.

    Raises Forbidden, naming the missing scope.
    """
    if caller.has(UPDATE_ANY):
        return True
    if not caller.has(UPDATE):
        raise Forbidden(f"The token needs the scope {UPDATE}", scope=UPDATE)
    return False


def require_self(caller: Caller, user_id: str) -> None:
    """Let pass who acts for themselves.

    Raises Forbidden.
    """
    if caller.subject != user_id:
        raise Forbidden(
            f"userId must be the token's sub; acting for others needs the scope {UPDATE_ANY}",
            scope=UPDATE_ANY,
        )


__all__ = [
    "authenticate",
    "bearer_token",
    "require_reader",
    "require_self",
    "require_updater",
    "unauthenticated",
]
