"""The life of a viewer's token after the handshake: warned, renewed in place, or over. No I/O.

The gateway looks at a token once; that it ends is the streamer's alone to heed. Moments are the
loop's clock, converted once, so that no change of the wall clock ends or prolongs a token.
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

    def due_s(self, settings: Settings) -> float:
        """Give the next moment at which something is to be done about it."""
        if self.is_warned:
            return self.ends_at_s + settings.token_grace_s
        return self.ends_at_s - settings.token_warning_s

    def renew(self, caller: Caller, ends_at_s: float, *, is_public: bool) -> None:
        """Let a verified token take the place of this one.

        Raises Forbidden if it speaks for someone else or allows less than the board asks for,
        Malformed if it does not end later.
        """
        if (caller.subject, caller.issuer) != (self.caller.subject, self.caller.issuer):
            raise Forbidden("The new token is another user's")
        require_read(caller, is_public=is_public)
        if caller.expires_at_s <= self.caller.expires_at_s:
            raise Malformed("The new token does not end later than the one it would replace")
        self.caller = caller
        self.ends_at_s = ends_at_s
        self.is_warned = False
