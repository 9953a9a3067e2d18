"""The issuer's public keys: reads a key set from a file or a URL, and keeps the last good one.

Called by scoreboard.security.tokens, and by the commands that render the gateway's keys. What stays
true: only RS256 and ES256 keys are ever held; a key that cannot be used never costs another one; a
set without a usable key never replaces a good one; a good one is kept 24 h at most; one fetch is
under way at a time, strangers cannot cause more than one in 30 s, and few callers wait for it.
"""

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import httpx
import jwt
import msgspec
from msgspec import Struct

from scoreboard.errors import KeysUnavailable, SettingInvalid
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger

ALGORITHMS: Final = ("RS256", "ES256")
"""What tokens may be signed with. Neither ``none`` nor a shared secret, whatever a key set says."""

RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 16_384
"""A larger key makes each check slower than an answer may be."""

DOCUMENT_BYTES_MAX: Final = 65_536
"""A key set is a few KB; a server that sends more is not an issuer's."""

KID_LENGTH_MAX: Final = 256
KID: Final = re.compile(rf"[\x21-\x7e]{{1,{KID_LENGTH_MAX}}}")
"""What a kid looks like; the gateway can hold no other."""

FAULTS_SHOWN: Final = 8
SHOWN_LENGTH: Final = 128
"""Bounds of what is logged of a key set with faults."""

FETCH_TIMEOUT_S: Final = 5.0
REFRESH_S: Final = 300.0
FORCED_REFRESH_S: Final = 30.0
"""Least time between two fetches that an unknown ``kid`` causes: anyone can send one."""

WAITING_MAX: Final = 16
"""Most callers that wait for an unknown key; each holds a request's or a handshake's place."""

WAIT_S: Final = 4.0
"""Longest such wait: less than a request or a handshake may take."""

FILE_CHECK_S: Final = 2.0
KEPT_S: Final = 24 * 3600.0
"""How long the last good set is trusted while no newer one can be read."""

_log = get_logger(__name__)


class Key(Struct, frozen=True):
    """A public key with what it was made of, so that a changed one is seen."""

    public: jwt.PyJWK
    material: tuple[tuple[str, str], ...]


Keys = Mapping[str, Key]


class _Jwk(Struct, frozen=True):
    """The members of a JWK that matter here; private ones are never read."""

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
        """The public members of the key's type."""
        names = ("kty", "n", "e") if self.kty == "RSA" else ("kty", "crv", "x", "y")
        return tuple((name, getattr(self, name)) for name in names)


class _Document(Struct, frozen=True):
    keys: list[msgspec.Raw]


class KeySet(Struct, frozen=True):
    """What a JWK set holds for us."""

    keys: Keys
    """Never empty."""
    faults: tuple[str, ...]
    """Which keys are ignored because they cannot be used as they are; a sentence each."""


def read_key_set(document: bytes) -> KeySet:
    """Read a JWK set as RFC 7517, section 5 asks: keys that cannot be used are ignored, one by one.

    Keys of other types, algorithms or uses are meant for others and no fault. Two different keys
    with one kid are both ignored: which of them a token means cannot be known
    (docs/decisions/0055). Raises ValueError where it is no key set or holds no key that fits.
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
            found = _read_key(raw)
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
        raise ValueError("the key set holds no RS256 or ES256 key with a kid")
    more = [f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
    return KeySet(keys, (*(text[:SHOWN_LENGTH] for text in faults[:FAULTS_SHOWN]), *more))


def parse_keys(document: bytes) -> Keys:
    """Read the keys of a JWK set.

    Raises ValueError where it is no key set or holds no key that fits.
    """
    return read_key_set(document).keys


def _read_key(raw: msgspec.Raw) -> tuple[str, Key] | None:
    """Read a key and its kid; None for a key that is meant for others.

    Raises ValueError or PyJWTError for a key that cannot be used as it is.
    """
    jwk = msgspec.json.decode(raw, type=_Jwk)
    algorithm = {("RSA", ""): "RS256", ("EC", "P-256"): "ES256"}.get((jwk.kty, jwk.crv))
    if (
        algorithm is None
        or jwk.alg not in {None, algorithm}
        or jwk.use != "sig"
        or "verify" not in jwk.key_ops
    ):
        return None
    if not KID.fullmatch(jwk.kid):
        raise ValueError("the kid is not 1 to 256 printable ASCII characters without space")
    public = jwt.PyJWK(dict(jwk.material), algorithm)
    if algorithm == "RS256" and not RSA_BITS_MIN <= public.key.key_size <= RSA_BITS_MAX:
        raise ValueError(f"an RSA key has {RSA_BITS_MIN} to {RSA_BITS_MAX} bits")
    return jwk.kid, Key(public, jwk.material)


class Source(Protocol):
    """Where a key set is read from."""

    check_s: float
    forced_check_s: float

    async def read(self) -> bytes:
        """Give the document.

        Raises OSError or ValueError.
        """
        ...


class FileSource:
    """A key set in a file, looked at often enough that a change of keys needs no restart."""

    check_s = FILE_CHECK_S
    forced_check_s = FILE_CHECK_S / 4

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> bytes:
        """Read the file, in a thread: it may lie on a slow mount."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            document = file.read(DOCUMENT_BYTES_MAX + 1)
        if len(document) > DOCUMENT_BYTES_MAX:
            raise ValueError(f"a key set has at most {DOCUMENT_BYTES_MAX} bytes")
        return document


_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""Nothing compressed: the limit of size holds for what is received."""


class UrlSource:
    """A key set at a URL: no redirects, a size limit, a time limit over the whole."""

    check_s = REFRESH_S
    forced_check_s = FORCED_REFRESH_S

    def __init__(self, url: str) -> None:
        self._url = url
        # Made once: loading the certificate store takes tens of milliseconds of the loop.
        self._tls: Any = httpx.create_ssl_context() if url.startswith("https:") else True

    async def read(self) -> bytes:
        """Fetch the document."""
        try:
            async with (
                asyncio.timeout(FETCH_TIMEOUT_S),
                # Only what the settings name is asked: no proxy or .netrc of the environment.
                httpx.AsyncClient(verify=self._tls, trust_env=False) as client,
                client.stream("GET", self._url, headers=_HEADERS) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise ValueError(f"the issuer answered {response.status_code}")
                document = bytearray()
                async for chunk in response.aiter_raw():
                    document += chunk
                    if len(document) > DOCUMENT_BYTES_MAX:
                        raise ValueError(f"a key set has at most {DOCUMENT_BYTES_MAX} bytes")
                return bytes(document)
        except (httpx.HTTPError, TimeoutError) as error:
            raise OSError(f"the issuer cannot be reached: {type(error).__name__}") from error


def make_source(settings: Settings) -> Source:
    """Choose where keys come from.

    Raises SettingInvalid where neither or both are set, the URL cannot be read, or plain HTTP would
    carry keys afar.
    """
    if bool(settings.jwks_url) == bool(settings.jwks_file):
        raise SettingInvalid("set one of SCOREBOARD_JWKS_FILE and SCOREBOARD_JWKS_URL")
    if settings.jwks_file:
        return FileSource(Path(settings.jwks_file))
    try:
        parts = urlsplit(settings.jwks_url)
        is_port = parts.port != 0
    except ValueError:
        raise SettingInvalid("SCOREBOARD_JWKS_URL is not an address") from None
    if not is_port:
        raise SettingInvalid("SCOREBOARD_JWKS_URL is not an address: a port is at least 1")
    is_plain = parts.scheme == "http" and (
        settings.environment == "development" or _is_loopback(parts.hostname or "")
    )
    if not parts.hostname or not (parts.scheme == "https" or is_plain):
        raise SettingInvalid(
            "SCOREBOARD_JWKS_URL must be https:// (http:// only in development or on loopback)"
        )
    return UrlSource(settings.jwks_url)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class KeyCache:
    """Holds the issuer's keys; ``run`` refreshes them, sooner where an unknown kid asks for it."""

    def __init__(self, source: Source, on_gone: Callable[[frozenset[str]], None]) -> None:
        """``on_gone`` is told which kids are no longer trusted, or now mean another key."""
        self._source = source
        self._on_gone = on_gone
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
        """Set at the end of a read, and then replaced."""

    @property
    def is_loaded(self) -> bool:
        """Tell whether there are keys to verify with."""
        return bool(self._keys)

    def known(self, kid: str) -> Key | None:
        """Give the key of a kid where it is held and not too old."""
        self._forget_old()
        return self._keys.get(kid)

    async def find(self, kid: str) -> Key | None:
        """Give the key of a kid, reading the set anew where it is unknown and long enough unread.

        Raises KeysUnavailable where it cannot be told now: there are no keys at all, or the issuer
        takes long to answer. A few callers wait for it; the others are told at once, so that
        unknown kids never hold up anybody else.
        """
        key = self.known(kid)
        if key is None and self._may_look():
            await self._look(kid)
            key = self.known(kid)
        if key is None and not self._keys:
            raise KeysUnavailable("The issuer's keys cannot be read; try again")
        return key

    async def run(self) -> None:
        """Refresh for ever; retries sooner, with back-off, while the issuer is away."""
        attempt = 0
        self._is_running = True
        try:
            while True:
                if await self._refresh():
                    jitter = random.uniform(0.9, 1.1)  # noqa: S311 (no secret)
                    attempt, wait_s = 0, self._source.check_s * jitter
                else:
                    attempt, wait_s = attempt + 1, backoff_s(attempt, least_s=0.5, most_s=30.0)
                self._forget_old()
                await self._sleep(wait_s)
        finally:
            self._is_running = False

    async def _sleep(self, wait_s: float) -> None:
        """Wait, or until an unknown kid asks for a read."""
        self._wanted.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wanted.wait()
                self._note_forced()

    def _may_look(self) -> bool:
        return self._is_reading or time.monotonic() >= self._forced_until_s

    def _note_forced(self) -> None:
        self._forced_until_s = time.monotonic() + self._source.forced_check_s

    async def _look(self, kid: str) -> None:
        """Wait as long as a read may bring the key of a kid."""
        if self._waiting >= WAITING_MAX:
            raise KeysUnavailable("The issuer's keys are being read; try again")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                while self.known(kid) is None and self._may_look():
                    if self._is_reading:
                        await self._has_read.wait()
                    elif self._is_running:
                        self._wanted.set()
                        await self._has_read.wait()
                    else:
                        self._note_forced()
                        await self._refresh()
        except TimeoutError:
            raise KeysUnavailable("The issuer does not answer; try again") from None
        finally:
            self._waiting -= 1

    async def _refresh(self) -> bool:
        """Read the set; tell whether that went well."""
        self._is_reading = True
        try:
            document = await self._source.read()
            if document != self._document:
                found = read_key_set(document)
                self._note_faults(found.faults)
                self._replace(found.keys)
        except (OSError, ValueError) as error:
            _log.warning("key_set_refresh_failed", reason=str(error), keys=len(self._keys))
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
            _log.warning("keys_ignored", reasons=faults)
        self._faults = faults

    def _forget_old(self) -> None:
        if self._keys and time.monotonic() - self._read_at_s > KEPT_S:
            _log.error("key_set_expired", keys=len(self._keys))
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
            _log.info("key_set_changed", keys=len(keys), gone=len(gone))
        if gone:
            self._on_gone(gone)
