"""Authentication of requests: the token of the Authorization header identifies the caller.

Identity headers of a gateway are ignored. What a caller may do: scoreboard.security.access.
"""

from collections.abc import Mapping

from scoreboard.security.tokens import Caller, Verifier, bearer_token


async def authenticate(verifier: Verifier, headers: Mapping[bytes, bytes]) -> Caller:
    """Return the caller of a request.

    Raises Unauthenticated, KeysUnavailable.
    """
    return await verifier.verify(bearer_token(headers.get(b"authorization")))
