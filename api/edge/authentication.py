"""Authentication of requests, and checks of the caller's scopes.

Only the token identifies a caller: identity headers of a gateway are ignored.
"""

from collections.abc import Mapping

from scoreboard.errors import Forbidden
from scoreboard.security.access import require_read
from scoreboard.security.tokens import (
    UPDATE,
    UPDATE_ANY,
    Caller,
    Verifier,
    bearer_token,
    unauthenticated,
)


async def authenticate(verifier: Verifier, headers: Mapping[bytes, bytes]) -> Caller:
    """Return the caller of a request.

    Raises Unauthenticated, KeysUnavailable.
    """
    return await verifier.verify(bearer_token(headers.get(b"authorization")))


def require_reader(caller: Caller) -> None:
    """Check that a caller may read boards that are not public.

    Raises Forbidden, naming the missing scope.
    """
    require_read(caller, is_public=False)


def require_updater(caller: Caller) -> bool:
    """Check that a caller may update scores; return whether those of any user.

    Raises Forbidden, naming the missing scope.
    """
    if caller.has(UPDATE_ANY):
        return True
    if not caller.has(UPDATE):
        raise Forbidden(f"The token needs the scope {UPDATE}", scope=UPDATE)
    return False


def require_self(caller: Caller, user_id: str) -> None:
    """Check that a caller updates their own score.

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
