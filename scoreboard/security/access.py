"""Who may read a board: everyone if it is public, else callers with the scope to read. No I/O."""

from scoreboard.errors import Forbidden, Unauthenticated
from scoreboard.security.tokens import READ, Caller


def can_read(caller: Caller | None, *, is_public: bool) -> bool:
    """Return whether a caller may read a board."""
    return is_public or (caller is not None and caller.has(READ))


def require_read(caller: Caller | None, *, is_public: bool) -> None:
    """Check that a caller may read a board.

    Raises Unauthenticated without a caller, Forbidden, naming the missing scope, otherwise.
    """
    if can_read(caller, is_public=is_public):
        return
    if caller is None:
        raise Unauthenticated("This board is not public: send a token")
    raise Forbidden(f"The token needs the scope {READ}", scope=READ)
