"""Which token to use, and when to ask for another one."""

import base64
import time
from typing import Literal

from msgspec import DecodeError, Struct, ValidationError, json

TokenReason = Literal["first", "expired", "expiring", "rejected"]
"""Why a provider is asked for a token."""

EXPIRY_MARGIN_S = 5.0
"""A token that is this close to its expiry is not sent with a new request."""


class _Claims(Struct):
    exp: float | None = None


def expiry_s(token: str) -> float | None:
    """Return when a JWT expires, in seconds since 1970; None if it does not say."""
    try:
        body = token.split(".")[1]
        claims = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        return json.decode(claims, type=_Claims).exp
    except (IndexError, ValueError, DecodeError, ValidationError):
        return None


class Tokens:
    """The token of a client. Whoever changes it holds the client's lock, so that one call asks."""

    def __init__(self, token: str | None, *, has_provider: bool) -> None:
        self.current = token
        self.has_provider = has_provider

    def reason(self, why: TokenReason | None, used: str | None) -> TokenReason | None:
        """Return why to ask the provider now, or None to use the current token.

        `why` is what happened to the token `used`. If another call has replaced that one since,
        nothing happened to the current token.
        """
        if not self.has_provider:
            return None
        if self.current is None:
            return "first" if why is None or used is None else why
        if why is not None and used == self.current:
            return why
        expiry = expiry_s(self.current)
        is_expired = expiry is not None and time.time() > expiry - EXPIRY_MARGIN_S
        return "expired" if is_expired else None
