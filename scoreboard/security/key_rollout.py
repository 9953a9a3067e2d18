"""Whether the services know a new signing key, before tokens are signed with it.

The order of a rotation: publish the pending key, wait for ``settle_s``, and try a token of it at
each service; then sign with it. A service reads its key set periodically and for a token with an
unknown key, the latter at most every 30 s per process. A token that is signed too early is refused
if another unknown key was tried within that time.
"""

import base64
import os
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import httpx

from scoreboard.errors import OperatorMistake
from scoreboard.security.key_set import FETCH_TIMEOUT_S, Source, parse_keys
from scoreboard.security.local_issuer import LocalIssuer, SigningKey

PROBE_SUBJECT: Final = "signing-key-probe"
PROBE_LIFE_S: Final = 60
PROBE_TIMEOUT_S: Final = 10.0
_JITTER: Final = 1.1
"""Of the interval at which a service reads its key set."""

_SCHEMES: Final = {"ws": "http", "wss": "https"}


def settle_s(source: Source) -> float:
    """Return the time after which every reader of ``source`` has read what is published now."""
    return source.check_s * _JITTER + FETCH_TIMEOUT_S


async def is_published(source: Source, key: SigningKey) -> bool:
    """Return whether a key set contains a key; False if the set cannot be read."""
    try:
        found = parse_keys(await source.read()).get(key.kid)
    except (OSError, ValueError):
        return False
    return found is not None and all(key.jwk.get(name) == value for name, value in found.material)


async def accepts_key(
    url: str, issuer: LocalIssuer, key: SigningKey, scope: str, *, audience: str = "scoreboard"
) -> bool:
    """Return whether a service accepts a token that is signed with ``key``.

    ``url`` is one that needs a token with ``scope``: ``http(s)://…/api/scores/leaderboard`` of an
    api, ``ws(s)://…/ws/scoreboard`` of a streamer. The process that answers reads its key set for
    this token if it does not know the key. Raises OperatorMistake for another URL, OSError if the
    service does not answer or answers with an error of its own.
    """
    parts = urlsplit(url)
    scheme = _SCHEMES.get(parts.scheme, parts.scheme)
    if scheme not in {"http", "https"} or not parts.hostname:
        raise OperatorMistake(f"{url!r} is not an address of an api or a streamer")
    token = issuer.issue(PROBE_SUBJECT, [scope], PROBE_LIFE_S, audience=audience, key=key)
    headers = {"Authorization": f"Bearer {token}"}
    if parts.scheme in _SCHEMES:
        headers |= {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
    try:
        async with (
            httpx.AsyncClient(timeout=PROBE_TIMEOUT_S, trust_env=False) as client,
            client.stream("GET", urlunsplit((scheme, *parts[1:])), headers=headers) as response,
        ):
            status = response.status_code
    except httpx.HTTPError as error:
        raise OSError(f"{url}: {type(error).__name__}") from error
    if status >= 500:
        raise OSError(f"{url} answered with status {status}")
    return status != httpx.codes.UNAUTHORIZED
