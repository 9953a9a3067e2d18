"""The lifetime of a viewer's token: expiry warning, renewal in place, expiry. No I/O.

The gateway checks a token once, at the handshake; the streamer enforces its expiry. Times are the
loop's clock, converted once, so that a change of the wall clock neither ends nor extends a token.
"""

from scoreboard.errors import Forbidden, Malformed
from scoreboard.runtime.settings import Settings
from scoreboard.security.access import require_read
from scoreboard.security.tokens import Caller


class TokenSession:
    """One viewer's token; anonymous viewers have none."""

    __slots__ = ("caller", "ends_at_s", "is_checking", "is_warned", "tried_at_s")

    def __init__(self, caller: Caller, ends_at_s: float) -> None:
        self.caller = caller
        self.ends_at_s = ends_at_s
        self.is_warned = False
        self.is_checking = False
        self.tried_at_s = float("-inf")

    def next_deadline_s(self, settings: Settings) -> float:
        """Return when to warn the viewer, or to close after the warning."""
        if self.is_warned:
            return self.ends_at_s + settings.token_grace_s
        return self.ends_at_s - settings.token_warning_s

    def renew(self, caller: Caller, ends_at_s: float, *, is_public: bool) -> None:
        """Replace the token by a verified one.

        Raises Forbidden if it belongs to another user or lacks the scope that the board requires,
        Malformed if it does not expire later.
        """
        if (caller.subject, caller.issuer) != (self.caller.subject, self.caller.issuer):
            raise Forbidden("The new token belongs to another user")
        require_read(caller, is_public=is_public)
        if caller.expires_at_s <= self.caller.expires_at_s:
            raise Malformed("The new token does not expire later than the current one")
        self.caller = caller
        self.ends_at_s = ends_at_s
        self.is_warned = False
