"""Who may read a board, and who may update whose score. No I/O.

Everyone may read a public board, and callers with the scope to read any board. A player may update
their own score, a game server that of any user. A player may read the history of their own score, a
game server that may also read boards that of any user. Administrators need a scope of their own,
which includes no other.
"""

from scoreboard.errors import Forbidden, Unauthenticated
from scoreboard.security.tokens import ADMIN, READ, UPDATE, UPDATE_ANY, Caller


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


def require_history(caller: Caller, user_id: str) -> None:
    """Check that a caller may read the counted actions of a user.

    Raises Forbidden, naming the missing scope.
    """
    if not caller.has(READ):
        raise Forbidden(f"The token needs the scope {READ}", scope=READ)
    if caller.subject != user_id and not caller.has(UPDATE_ANY):
        raise Forbidden(
            f"The user must be the token's sub; others' history needs the scope {UPDATE_ANY}",
            scope=UPDATE_ANY,
        )


def require_updater(caller: Caller) -> bool:
    """Check that a caller may update scores; return whether those of any user.

    Raises Forbidden, naming the missing scope.
    """
    if caller.has(UPDATE_ANY):
        return True
    if not caller.has(UPDATE):
        raise Forbidden(f"The token needs the scope {UPDATE}", scope=UPDATE)
    return False


def require_bulk_updater(caller: Caller) -> None:
    """Check that a caller may send many updates in one request.

    Raises Forbidden.
    """
    if not caller.has(UPDATE_ANY):
        raise Forbidden(f"The token needs the scope {UPDATE_ANY}", scope=UPDATE_ANY)


def require_admin(caller: Caller) -> None:
    """Check that a caller may administer.

    Raises Forbidden, naming the missing scope.
    """
    if not caller.has(ADMIN):
        raise Forbidden(f"The token needs the scope {ADMIN}", scope=ADMIN)


def require_scope(caller: Caller, scope: str) -> None:
    """Check that a caller has the scope that a kind of action requires.

    Raises Forbidden, naming the scope.
    """
    if not caller.has(scope):
        raise Forbidden(f"Actions of this kind need a token with the scope {scope}", scope=scope)


def require_self(caller: Caller, user_id: str) -> None:
    """Check that a caller updates their own score.

    Raises Forbidden.
    """
    if caller.subject != user_id:
        raise Forbidden(
            f"userId must be the token's sub; acting for others needs the scope {UPDATE_ANY}",
            scope=UPDATE_ANY,
        )
