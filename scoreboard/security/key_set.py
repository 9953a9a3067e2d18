"""Public keys: reads a JWK set from a file or a URL, and caches the last valid one.

One set has the keys of the tokens' issuer, another one those of the game servers that sign proofs.
Invariants: only keys of the allowed algorithms are used; an unusable key does not affect the
others; a set without usable keys never replaces a valid one; a set is cached for at most 24 h; at
most one fetch is in progress, tokens with unknown keys cause at most one per 30 s, and few callers
wait for it.
"""

import asyncio
import re
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import jwt
import msgspec
from msgspec import Struct

from scoreboard.errors import KeysUnavailable, SettingInvalid
from scoreboard.runtime.lifecycle import backoff_s, jitter
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger

ALGORITHMS: Final = ("RS256", "ES256")
"""Algorithms of tokens; never ``none`` or a shared secret, whatever the key set says."""

PROOF_ALGORITHMS: Final = (*ALGORITHMS, "EdDSA")
"""Algorithms of proofs, which the gateway does not have to verify; EdDSA with Ed25519."""

_BY_TYPE: Final[Mapping[tuple[str, str], str]] = {
    ("RSA", ""): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""The algorithm of each type of key and curve."""

_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("kty", "n", "e"),
    "EC": ("kty", "crv", "x", "y"),
    "OKP": ("kty", "crv", "x"),
}
"""The public parameters of a key of each type."""

RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 16_384
"""Verification with a larger key would be too slow."""

DOCUMENT_BYTES_MAX: Final = 65_536
"""A key set is usually a few KB."""

KID_LENGTH_MAX: Final = 256
KID: Final = re.compile(rf"[\x21-\x7e]{{1,{KID_LENGTH_MAX}}}")
"""A valid kid; the gateway supports no other."""

FAULTS_SHOWN: Final = 8
SHOWN_LENGTH: Final = 128
"""Limits on logged faults of a key set."""

FETCH_TIMEOUT_S: Final = 5.0
REFRESH_S: Final = 300.0
FORCED_REFRESH_S: Final = 30.0
"""Minimum time between fetches caused by an unknown ``kid``, which any client can send."""

WAITING_MAX: Final = 16
"""Maximum number of callers waiting for an unknown key; each is a request or a handshake."""

WAIT_S: Final = 4.0
"""Longest such wait; shorter than the time limits of requests and handshakes."""

FILE_CHECK_S: Final = 2.0
KEPT_S: Final = 24 * 3600.0
"""How long the last valid set is trusted while no newer one can be read."""

_log = get_logger(__name__)


class Key(Struct, frozen=True):
    """A public key with its parameters, to detect a changed key."""

    public: jwt.PyJWK
    material: tuple[tuple[str, str], ...]


Keys = Mapping[str, Key]


class _Jwk(Struct, frozen=True):
    """The members of a JWK that are used; private ones are never read."""

    kty: str = ""
    kid: str = ""
    use: str = "sig"
    alg: str | None = None
    key_ops: list[str] = msgspec.field(default_factory=lambda: ["verify"])
    crv: str = ""
    n: str = ""
    e: str = ""
    x: str = ""
    y: str = ""

    @property
    def material(self) -> tuple[tuple[str, str], ...]:
        """The public parameters of the key's type."""
        return tuple((name, getattr(self, name)) for name in _MEMBERS[self.kty])


class _Document(Struct, frozen=True):
    keys: list[msgspec.Raw]


class KeySet(Struct, frozen=True):
    """The usable keys of a JWK set, and its faults."""

    keys: Keys
    """Never empty."""
    faults: tuple[str, ...]
    """Why keys are ignored; one message each."""


def read_key_set(document: bytes, algorithms: Collection[str] = ALGORITHMS) -> KeySet:
    """Parse a JWK set; unusable keys are ignored individually (RFC 7517, section 5).

    Keys of other types, algorithms or uses are not faults. Two different keys with the same kid are
    both ignored, because a token could mean either (docs/decisions/0055). Raises ValueError for an
    invalid key set or one without usable keys.
    """
    try:
        entries = msgspec.json.decode(document, type=_Document).keys
    except RecursionError:
        raise ValueError("the key set is nested too deeply") from None
    keys: dict[str, Key] = {}
    ambiguous: set[str] = set()
    faults: list[str] = []
    for number, raw in enumerate(entries, 1):
        try:
            found = _read_key(raw, algorithms)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            faults.append(f"key {number}: {error}")
            continue
        if found is None:
            continue
        kid, key = found
        if keys.setdefault(kid, key).material != key.material:
            ambiguous.add(kid)
    for kid in ambiguous:
        del keys[kid]
        faults.append(f"two keys have the kid {kid[:SHOWN_LENGTH]!r}")
    if not keys:
        raise ValueError(f"the key set has no {' or '.join(algorithms)} key with a kid")
    more = [f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
    return KeySet(keys, (*(text[:SHOWN_LENGTH] for text in faults[:FAULTS_SHOWN]), *more))


def parse_keys(document: bytes) -> Keys:
    """Parse the keys of a JWK set.

    Raises ValueError for an invalid key set or one without usable keys.
    """
    return read_key_set(document).keys


def _read_key(raw: msgspec.Raw, algorithms: Collection[str]) -> tuple[str, Key] | None:
    """Parse a key and its kid; return None for a key of another type, algorithm or use.

    Raises ValueError or PyJWTError for an invalid key.
    """
    jwk = msgspec.json.decode(raw, type=_Jwk)
    algorithm = _BY_TYPE.get((jwk.kty, jwk.crv))
    if (
        algorithm not in algorithms
        or jwk.alg not in {None, algorithm}
        or jwk.use != "sig"
        or "verify" not in jwk.key_ops
    ):
        return None
    if not KID.fullmatch(jwk.kid):
        raise ValueError("the kid must be 1 to 256 printable ASCII characters without spaces")
    public = jwt.PyJWK(dict(jwk.material), algorithm)
    if algorithm == "RS256" and not RSA_BITS_MIN <= public.key.key_size <= RSA_BITS_MAX:
        raise ValueError(f"an RSA key must have {RSA_BITS_MIN} to {RSA_BITS_MAX} bits")
    return jwk.kid, Key(public, jwk.material)


class Source(Protocol):
    """A source of a key set."""

    check_s: float
    forced_check_s: float

    async def read(self) -> bytes:
        """Return the document.

        Raises OSError or ValueError.
        """
        ...


class FileSource:
    """A key set in a file, read often, so that changed keys need no restart."""

    check_s = FILE_CHECK_S
    forced_check_s = FILE_CHECK_S / 4

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> bytes:
        """Read the file in a thread, because the file system may be slow."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            document = file.read(DOCUMENT_BYTES_MAX + 1)
        if len(document) > DOCUMENT_BYTES_MAX:
            raise ValueError(f"the key set exceeds {DOCUMENT_BYTES_MAX} bytes")
        return document


_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""No compression, so that the size limit applies to the received bytes."""


class UrlSource:
    """A key set at a URL, fetched without redirects, with limits on size and total time.

    httpx is imported here, because no other source needs it and it takes a quarter of the import
    time of a service.
    """

    check_s = REFRESH_S
    forced_check_s = FORCED_REFRESH_S

    def __init__(self, url: str) -> None:
        import httpx  # noqa: PLC0415

        self._url = url
        # Created once: loading the certificate store blocks the loop for tens of milliseconds.
        self._tls: Any = httpx.create_ssl_context() if url.startswith("https:") else True

    async def read(self) -> bytes:
        """Fetch the document."""
        import httpx  # noqa: PLC0415

        try:
            async with (
                asyncio.timeout(FETCH_TIMEOUT_S),
                # Ignore proxies and .netrc of the environment.
                httpx.AsyncClient(verify=self._tls, trust_env=False) as client,
                client.stream("GET", self._url, headers=_HEADERS) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise ValueError(f"the issuer responded with status {response.status_code}")
                document = bytearray()
                async for chunk in response.aiter_raw():
                    document += chunk
                    if len(document) > DOCUMENT_BYTES_MAX:
                        raise ValueError(f"the key set exceeds {DOCUMENT_BYTES_MAX} bytes")
                return bytes(document)
        except (httpx.HTTPError, TimeoutError) as error:
            raise OSError(f"the issuer is unreachable: {type(error).__name__}") from error


def make_source(settings: Settings) -> Source:
    """Return the source of the issuer's keys that the settings name.

    Raises SettingInvalid if neither or both are set, if the URL is invalid, or if it is plain HTTP
    to another machine.
    """
    if bool(settings.jwks_url) == bool(settings.jwks_file):
        raise SettingInvalid("set one of SCOREBOARD_JWKS_FILE and SCOREBOARD_JWKS_URL")
    if settings.jwks_file:
        return FileSource(Path(settings.jwks_file))
    return _url_source(settings, settings.jwks_url, "SCOREBOARD_JWKS_URL")


def make_proof_source(settings: Settings) -> Source | None:
    """Return the source of the keys of proofs that the settings name; None if they name none.

    Raises SettingInvalid if both are set, and for URLs as ``make_source`` does.
    """
    if settings.proof_jwks_url and settings.proof_jwks_file:
        raise SettingInvalid(
            "set only one of SCOREBOARD_PROOF_JWKS_FILE and SCOREBOARD_PROOF_JWKS_URL"
        )
    if settings.proof_jwks_file:
        return FileSource(Path(settings.proof_jwks_file))
    if settings.proof_jwks_url:
        return _url_source(settings, settings.proof_jwks_url, "SCOREBOARD_PROOF_JWKS_URL")
    return None


def _url_source(settings: Settings, url: str, variable: str) -> UrlSource:
    try:
        parts = urlsplit(url)
        is_port = parts.port != 0
    except ValueError:
        raise SettingInvalid(f"{variable} is not a valid URL") from None
    if not is_port:
        raise SettingInvalid(f"{variable} is not a valid URL: the port must be at least 1")
    is_plain = parts.scheme == "http" and (
        settings.environment == "development" or _is_loopback(parts.hostname or "")
    )
    if not parts.hostname or not (parts.scheme == "https" or is_plain):
        raise SettingInvalid(
            f"{variable} must be https:// (http:// only in development or on loopback)"
        )
    return UrlSource(url)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class KeyCache:
    """Caches a key set; ``run`` refreshes it periodically and for unknown kids."""

    def __init__(
        self,
        source: Source,
        on_gone: Callable[[frozenset[str]], None],
        *,
        algorithms: Collection[str] = ALGORITHMS,
        of: str = "tokens",
    ) -> None:
        """``on_gone`` is called with the kids that were removed or now have another key.

        ``of`` is what the keys sign, for logs and errors.
        """
        self._source = source
        self._on_gone = on_gone
        self._algorithms = algorithms
        self._of = of
        self._keys: Keys = {}
        self._faults: tuple[str, ...] = ()
        self._document = b""
        self._read_at_s = 0.0
        self._forced_until_s = 0.0
        self._waiting = 0
        self._wanted = asyncio.Event()
        self._is_running = False
        self._is_reading = False
        self._has_read = asyncio.Event()
        """Set after a read, and then replaced."""

    @property
    def is_loaded(self) -> bool:
        """Return whether there are keys."""
        return bool(self._keys)

    def known(self, kid: str) -> Key | None:
        """Return the cached key of a kid, if it has not expired."""
        self._drop_expired()
        return self._keys.get(kid)

    async def find(self, kid: str) -> Key | None:
        """Return the key of a kid; for an unknown kid, read the set again if that is allowed.

        Raises KeysUnavailable if there are no keys, or if the issuer responds slowly. A few callers
        wait for the read; others fail immediately, so that unknown kids do not block requests.
        """
        key = self.known(kid)
        if key is None and self._may_read():
            await self._wait_for_key(kid)
            key = self.known(kid)
        if key is None and not self._keys:
            raise KeysUnavailable(f"The keys of {self._of} cannot be read; retry")
        return key

    async def run(self) -> None:
        """Refresh until cancelled; retry with backoff after failures."""
        attempt = 0
        self._is_running = True
        try:
            while True:
                if await self._refresh():
                    attempt, wait_s = 0, jitter(self._source.check_s)
                else:
                    attempt, wait_s = attempt + 1, backoff_s(attempt, least_s=0.5, most_s=30.0)
                self._drop_expired()
                await self._sleep(wait_s)
        finally:
            self._is_running = False

    async def _sleep(self, wait_s: float) -> None:
        """Sleep until the time has passed or an unknown kid requests a read."""
        self._wanted.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wanted.wait()
                self._note_forced()

    def _may_read(self) -> bool:
        return self._is_reading or time.monotonic() >= self._forced_until_s

    def _note_forced(self) -> None:
        self._forced_until_s = time.monotonic() + self._source.forced_check_s

    async def _wait_for_key(self, kid: str) -> None:
        """Wait for reads until the key of a kid is known or no read is allowed."""
        if self._waiting >= WAITING_MAX:
            raise KeysUnavailable(f"The keys of {self._of} are being read; retry")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                while self.known(kid) is None and self._may_read():
                    if self._is_reading:
                        await self._has_read.wait()
                    elif self._is_running:
                        self._wanted.set()
                        await self._has_read.wait()
                    else:
                        self._note_forced()
                        await self._refresh()
        except TimeoutError:
            raise KeysUnavailable(
                f"The source of the keys of {self._of} does not respond"
            ) from None
        finally:
            self._waiting -= 1

    async def _refresh(self) -> bool:
        """Read the set; return whether that succeeded."""
        self._is_reading = True
        try:
            document = await self._source.read()
            if document != self._document:
                found = read_key_set(document, self._algorithms)
                self._note_faults(found.faults)
                self._replace(found.keys)
        except (OSError, ValueError) as error:
            _log.warning(
                "key_set_refresh_failed", of=self._of, reason=str(error), keys=len(self._keys)
            )
            return False
        else:
            self._document, self._read_at_s = document, time.monotonic()
            return True
        finally:
            self._is_reading = False
            self._has_read.set()
            self._has_read = asyncio.Event()

    def _note_faults(self, faults: tuple[str, ...]) -> None:
        if faults and faults != self._faults:
            _log.warning("keys_ignored", of=self._of, reasons=faults)
        self._faults = faults

    def _drop_expired(self) -> None:
        if self._keys and time.monotonic() - self._read_at_s > KEPT_S:
            _log.error("key_set_expired", of=self._of, keys=len(self._keys))
            self._document = b""
            self._replace({})

    def _replace(self, keys: Keys) -> None:
        before, self._keys = self._keys, keys
        gone = frozenset(
            kid
            for kid, key in before.items()
            if kid not in keys or keys[kid].material != key.material
        )
        if gone or keys.keys() != before.keys():
            _log.info("key_set_changed", of=self._of, keys=len(keys), gone=len(gone))
        if gone:
            self._on_gone(gone)
