"""Remembers verified tokens and proofs, so that a signature is verified once. No I/O.

Invariants:

- only verified tokens enter; a token is used until it expires or its key is removed;
- memory is bounded: the number of tokens is limited, and an entry has the user id of at most 128
  characters, while scopes, issuer and key are shared with other entries;
- no token is kept, only its digest under a random key of this process: two tokens with the same
  digest cannot be computed without that key, and a memory dump contains no token;
- nothing searches all entries, so the time of an operation does not depend on their number.
"""

import hashlib
import secrets
import time
from collections.abc import Iterable
from random import random
from typing import Final, Generic, Protocol, TypeVar

from msgspec import Struct

SAMPLE: Final = 8
"""Entries that are compared to find the one to replace."""

DIGEST_BYTES: Final = 16


class Verified(Protocol):
    """What a verified token or proof says."""

    @property
    def expires_at_s(self) -> float:
        """When it expires, in seconds since 1970."""
        ...


V = TypeVar("V", bound=Verified)


class _Key:
    """A key that signed cached tokens."""

    __slots__ = ("is_gone",)

    def __init__(self) -> None:
        self.is_gone = False


class _Entry(Struct, Generic[V], gc=False):
    value: V
    key: _Key
    is_used: bool = False
    """Whether it was found since it was added or last considered for replacement."""


class TokenCache(Generic[V]):
    """A limited number of verified tokens.

    A full cache replaces a random entry, if possible one that cannot be used any more, else one
    that was not used lately. If more users come in turn than there is room for, the share of the
    tokens that is found falls with the share that there is room for. In a cache that replaces the
    oldest entry, it would fall to nothing.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[bytes, _Entry[V]] = {}
        self._places: list[bytes] = []
        """The digests of all entries, to choose among; some have no entry any more."""
        self._keys: dict[str, _Key] = {}
        self._hash = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=DIGEST_BYTES)

    def __len__(self) -> int:
        """Return the number of tokens, including those that cannot be used any more."""
        return len(self._entries)

    def find(self, token: bytes) -> V | None:
        """Return what a token says that is cached and has not expired."""
        digest = self._digest(token)
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if not _is_valid(entry, time.time()):
            del self._entries[digest]
            return None
        entry.is_used = True
        return entry.value

    def add(self, token: bytes, kid: str, value: V) -> None:
        """Cache a verified token, and the kid of its key."""
        digest = self._digest(token)
        entry = _Entry(value, self._keys.setdefault(kid, _Key()))
        if digest not in self._entries:
            if len(self._places) < self._most:
                self._places.append(digest)
            else:
                place = self._find_place()
                self._entries.pop(self._places[place], None)
                self._places[place] = digest
        self._entries[digest] = entry

    def drop(self, kids: Iterable[str]) -> None:
        """Drop the tokens of keys, at once; their memory is used for the next tokens."""
        for kid in kids:
            key = self._keys.pop(kid, None)
            if key is not None:
                key.is_gone = True

    def _find_place(self) -> int:
        """Return the place of an entry to replace."""
        count, now_s = len(self._places), time.time()
        first = int(random() * count)  # noqa: S311 (no secret)
        sample = [(first + step) % count for step in range(min(SAMPLE, count))]
        unused = None
        for place in sample:
            entry = self._entries.get(self._places[place])
            if entry is None or not _is_valid(entry, now_s):
                return place
            if not entry.is_used and unused is None:
                unused = place
        if unused is not None:
            return unused
        for place in sample:
            self._entries[self._places[place]].is_used = False
        return first

    def _digest(self, token: bytes) -> bytes:
        digest = self._hash.copy()
        digest.update(token)
        return digest.digest()


def _is_valid(entry: _Entry[V], now_s: float) -> bool:
    return not entry.key.is_gone and entry.value.expires_at_s > now_s
