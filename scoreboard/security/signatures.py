"""Verifies the signatures of tokens and proofs by a key set, and remembers what was verified."""

import time
from collections.abc import Callable, Collection
from typing import Final, Generic, TypeVar

from scoreboard.security.key_set import ALGORITHMS, KeyCache, Source
from scoreboard.security.signed_token import SignedToken, parse_token, unauthenticated
from scoreboard.security.token_cache import TokenCache, Verified

V = TypeVar("V", bound=Verified)


class Signatures(Generic[V]):
    """A key set, and a cache of what its keys have signed."""

    def __init__(
        self,
        source: Source,
        most: int,
        *,
        algorithms: Collection[str] = ALGORITHMS,
        of: str = "tokens",
    ) -> None:
        """``most`` is the size of the cache; ``of`` says what is signed, for logs and errors."""
        self.cache: Final = TokenCache[V](most)
        self.keys: Final = KeyCache(source, self.cache.drop, algorithms=algorithms, of=of)
        self._algorithms = algorithms

    async def verify(self, signed: bytes, read: Callable[[SignedToken], V]) -> V:
        """Verify what is not in the cache, and add it; ``read`` checks it after its signature.

        Raises Unauthenticated with its reason, KeysUnavailable if there are no keys.
        """
        parts = parse_token(signed, self._algorithms)
        key = await self.keys.find(parts.kid)
        if key is None:
            raise unauthenticated("unknown-key")
        if key.public.algorithm_name != parts.algorithm:
            raise unauthenticated("algorithm")
        if not key.public.Algorithm.verify(parts.signed, key.public.key, parts.signature):
            raise unauthenticated("signature")
        value = read(parts)
        if value.expires_at_s > time.time() and self.keys.known(parts.kid) is key:
            self.cache.add(signed, parts.kid, value)
        return value
