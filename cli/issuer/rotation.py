"""Rotation of the development issuer's secrets: its signing key and the game servers' secret.

The issuer reads its files again by itself, so a pending version takes effect without a call. What
has to be waited for are the services, which must know a key before tokens are signed with it.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import httpx

from cli.issuer.config import make_client_secret
from cli.issuer.oauth import GAME_SERVER
from scoreboard.errors import Unavailable, WaitTimeout
from scoreboard.rotation.steps import refused
from scoreboard.runtime.settings import Secret
from scoreboard.security.key_rollout import accepts_key, is_published, settle_s
from scoreboard.security.key_set import Source
from scoreboard.security.local_issuer import LocalIssuer, make_signing_key, parse_signing_key
from scoreboard.security.tokens import READ

PUBLISH_S: Final = 10.0
"""Longest wait until the issuer's key set contains a pending key."""

POLL_S: Final = 0.2
TIMEOUT_S: Final = 10.0


class SigningKeyTarget:
    """The services that verify the issuer's tokens."""

    def __init__(
        self, issuer: LocalIssuer, source: Source, audience: str, services: Mapping[str, str]
    ) -> None:
        """``source`` is the key set that services read; ``services`` are URLs that need a token."""
        self._issuer = issuer
        self._source = source
        self._audience = audience
        self._services = services

    def make_document(self, current: Secret) -> Secret:
        """Return the PEM of a new key."""
        del current
        return make_signing_key()

    async def set(self, current: Secret, pending: Secret) -> None:
        """Publish the key, and wait until every service has read the key set.

        Raises WaitTimeout.
        """
        del current
        key = parse_signing_key(pending.reveal().encode())
        self._issuer.publish()
        try:
            async with asyncio.timeout(PUBLISH_S):
                while not await is_published(self._source, key):  # noqa: ASYNC110 (polls a server)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise WaitTimeout("The issuer's key set does not contain the new key") from None
        await asyncio.sleep(settle_s(self._source))

    async def test(self, pending: Secret) -> None:
        """Try a token of the key at each service.

        Raises RotationFailed, Unavailable if a service does not answer.
        """
        key = parse_signing_key(pending.reveal().encode())
        for name, url in self._services.items():
            try:
                is_accepted = await accepts_key(
                    url, self._issuer, key, READ, audience=self._audience
                )
            except OSError as error:
                raise Unavailable(str(error)) from error
            if not is_accepted:
                raise refused(f"The {name} refuses tokens of the new key")

    async def retire(self, current: Secret, pending: Secret | None, previous: Secret) -> None:
        """Do nothing: the issuer unpublishes the key when its file is gone."""
        del current, pending, previous

    async def disconnect(self, previous: Secret) -> int:
        """Do nothing: the streamer closes viewers itself when their key is gone."""
        del previous
        return 0


class ClientSecretTarget:
    """The issuer's token endpoint, which game servers call with their client secret."""

    def __init__(self, issuer_url: str) -> None:
        self._url = f"{issuer_url}/token"

    def make_document(self, current: Secret) -> Secret:
        """Return a new client secret."""
        del current
        return make_client_secret()

    async def set(self, current: Secret, pending: Secret) -> None:
        """Do nothing: the issuer accepts a pending secret as soon as its file exists."""
        del current, pending

    async def test(self, pending: Secret) -> None:
        """Request a token with the secret.

        Raises RotationFailed, Unavailable if the issuer does not answer.
        """
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
                response = await client.post(
                    self._url,
                    data={"grant_type": GAME_SERVER.grant},
                    auth=(GAME_SERVER.id, pending.reveal()),
                )
        except httpx.HTTPError as error:
            raise Unavailable(f"The issuer does not answer: {type(error).__name__}") from error
        if response.status_code != httpx.codes.OK:
            raise refused(f"The issuer answers {response.status_code} to the new client secret")

    async def retire(self, current: Secret, pending: Secret | None, previous: Secret) -> None:
        """Do nothing: the issuer refuses the secret when its file is gone."""
        del current, pending, previous

    async def disconnect(self, previous: Secret) -> int:
        """Do nothing: tokens that were issued for the secret expire within ten minutes."""
        del previous
        return 0
