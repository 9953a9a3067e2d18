"""The issuer's public keys: reads a key set from a file or a URL, and keeps the last good one.

Called by scoreboard.auth alone. What stays true: only RS256 and ES256 keys are ever held; a set
that cannot be read, is empty or is odd never replaces a good one; a good one is kept 24 h at most;
one fetch is under way at a time, and strangers cannot cause more than one in 30 s.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import httpx
import jwt
import msgspec
from msgspec import Struct

from scoreboard.errors import KeysUnavailable, SettingInvalid
from scoreboard.lifecycle import backoff_s
from scoreboard.settings import Settings
from scoreboard.telemetry import get_logger

ALGORITHMS: Final = ("RS256", "ES256")
"""What tokens may be signed with. Neither ``none`` nor a shared secret, whatever a key set says."""

RSA_BITS_MIN: Final = 2048
DOCUMENT_BYTES_MAX: Final = 65_536
"""A key set is a few KB; a server that sends more is not an issuer's."""

KID_LENGTH_MAX: Final = 256
FETCH_TIMEOUT_S: Final = 5.0
REFRESH_S: Final = 300.0
FORCED_REFRESH_S: Final = 30.0
"""Least time between two fetches that an unknown ``kid`` causes: anyone can send one."""

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


def parse_keys(document: bytes) -> Keys:
    """Read a JWK set; keys of other kinds or for other uses are passed over.

    Raises ValueError where it is no key set, names a key twice, or holds none that fits.
    """
    keys: dict[str, Key] = {}
    for raw in msgspec.json.decode(document, type=_Document).keys:
        try:
            jwk = msgspec.json.decode(raw, type=_Jwk)
        except msgspec.ValidationError:
            continue
        algorithm = {("RSA", ""): "RS256", ("EC", "P-256"): "ES256"}.get((jwk.kty, jwk.crv))
        if (
            algorithm is None
            or jwk.alg not in {None, algorithm}
            or jwk.use != "sig"
            or "verify" not in jwk.key_ops
            or not 1 <= len(jwk.kid) <= KID_LENGTH_MAX
        ):
            continue
        if jwk.kid in keys:
            raise ValueError("a kid stands twice in the key set")
        try:
            public = jwt.PyJWK(dict(jwk.material), algorithm)
        except (jwt.PyJWTError, ValueError) as error:
            raise ValueError("a key of the key set cannot be read") from error
        if algorithm == "RS256" and public.key.key_size < RSA_BITS_MIN:
            continue
        keys[jwk.kid] = Key(public, jwk.material)
    if not keys:
        raise ValueError("the key set holds no RS256 or ES256 key with a kid")
    return keys


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
                client.stream("GET", self._url, headers={"Accept": "application/json"}) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise ValueError(f"the issuer answered {response.status_code}")
                document = bytearray()
                async for chunk in response.aiter_bytes():
                    document += chunk
                    if len(document) > DOCUMENT_BYTES_MAX:
                        raise ValueError(f"a key set has at most {DOCUMENT_BYTES_MAX} bytes")
                return bytes(document)
        except (httpx.HTTPError, TimeoutError) as error:
            raise OSError(f"the issuer cannot be reached: {type(error).__name__}") from error


def source_of(settings: Settings) -> Source:
    """Choose where keys come from.

    Raises SettingInvalid where neither or both are set, or plain HTTP would carry keys afar.
    """
    if bool(settings.jwks_url) == bool(settings.jwks_file):
        raise SettingInvalid("set one of SCOREBOARD_JWKS_FILE and SCOREBOARD_JWKS_URL")
    if settings.jwks_file:
        return FileSource(Path(settings.jwks_file))
    parts = urlsplit(settings.jwks_url)
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
    """Holds the issuer's keys; ``run`` refreshes them, ``find`` may ask once for an unknown one."""

    def __init__(self, source: Source, on_gone: Callable[[frozenset[str]], None]) -> None:
        """``on_gone`` is told which kids are no longer trusted, or now mean another key."""
        self._source = source
        self._on_gone = on_gone
        self._keys: Keys = {}
        self._document = b""
        self._lock = asyncio.Lock()
        self._read_at_s = 0.0
        self._forced_until_s = 0.0

    @property
    def is_loaded(self) -> bool:
        """Tell whether there are keys to verify with."""
        return bool(self._keys)

    def known(self, kid: str) -> Key | None:
        """Give the key of a kid where it is held and not too old."""
        self._forget_old()
        return self._keys.get(kid)

    async def find(self, kid: str) -> Key | None:
        """Give the key of a kid, asking the issuer where it is unknown and long enough unasked.

        Raises KeysUnavailable while there are no keys at all.
        """
        key = self.known(kid)
        if key is not None:
            return key
        await self._refresh(wanted=kid)
        key = self.known(kid)
        if key is None and not self._keys:
            raise KeysUnavailable("The issuer's keys cannot be read; try again")
        return key

    async def run(self) -> None:
        """Refresh for ever; retries sooner, with back-off, while the issuer is away."""
        attempt = 0
        while True:
            if await self._refresh():
                jitter = random.uniform(0.9, 1.1)  # noqa: S311 (no secret)
                attempt, wait_s = 0, self._source.check_s * jitter
            else:
                attempt, wait_s = attempt + 1, backoff_s(attempt, least_s=0.5, most_s=30.0)
            self._forget_old()
            await asyncio.sleep(wait_s)

    async def _refresh(self, *, wanted: str | None = None) -> bool:
        """Read the set, and tell whether that went well.

        Forced by a ``wanted`` kid it is done once in a while only, and not where another's fetch,
        waited for here, has brought the key.
        """
        async with self._lock:
            if wanted is not None:
                if wanted in self._keys or time.monotonic() < self._forced_until_s:
                    return True
                self._forced_until_s = time.monotonic() + self._source.forced_check_s
            try:
                document = await self._source.read()
                keys = self._keys if document == self._document else parse_keys(document)
            except (OSError, ValueError) as error:
                _log.warning("key_set_refresh_failed", reason=str(error), keys=len(self._keys))
                return False
            self._document, self._read_at_s = document, time.monotonic()
            self._replace(keys)
            return True

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
