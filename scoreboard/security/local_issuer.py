"""Signs tokens and proofs of actions without an identity provider or a game server.

For development, tests, `scoreboard token` and `scoreboard proof`. Each of the two signers has an EC
P-256 key in a folder, readable only by its owner, next to the key set that the services verify
with. During a rotation it has two: see ``StagedFile``.

Invariants: everything is signed with the current key; the key set contains every key of the folder,
and is replaced atomically, with the state of the folder at that moment.
"""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from msgspec import Struct

from scoreboard.errors import OperatorMistake
from scoreboard.model import is_identifier
from scoreboard.runtime.settings import Secret
from scoreboard.security.signed_token import PROOF_TYPE
from scoreboard.security.staged_file import StagedFile, Versions

LOCAL_ISSUER: Final = "urn:scoreboard:local"
"""The ``iss`` of its tokens until it has a URL: set SCOREBOARD_ISSUER to it."""

KEY_FILE: Final = "issuer-key.pem"
JWKS_FILE: Final = "jwks.json"
PROOF_KEY_FILE: Final = "proof-key.pem"
PROOF_JWKS_FILE: Final = "proof-jwks.json"
NAME_FILE: Final = "issuer-name"
"""Contains the ``iss`` if it is not LOCAL_ISSUER."""


class SigningKey(Struct, frozen=True):
    """A private key, and the JWK of its public key."""

    private: ec.EllipticCurvePrivateKey
    jwk: dict[str, str]

    @property
    def kid(self) -> str:
        """The thumbprint of the public key."""
        return self.jwk["kid"]

    def __repr__(self) -> str:
        return f"SigningKey(kid={self.kid!r})"


class _Signer:
    """A signer with its key in a folder; use ``create`` or ``load``."""

    what: ClassVar[str]
    key_file: ClassVar[str]
    key_set_file: ClassVar[str]

    def __init__(self, folder: Path, keys: StagedFile[SigningKey]) -> None:
        self.jwks_file: Final = folder / self.key_set_file
        """The key set for the services to read."""
        self._files = keys

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Create the signer of a folder, or load the existing one; write its key set.

        Raises OperatorMistake as ``load`` does.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / cls.key_file).exists():
            # A link never overwrites: of two concurrent calls, one creates the key, both load it.
            made = _write_temporary(folder, make_signing_key().reveal().encode())
            with contextlib.suppress(FileExistsError):
                os.link(made, folder / cls.key_file)
            made.unlink()
        found = cls.load(folder)
        found.publish()
        return found

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the signer of a folder.

        Raises OperatorMistake if there is none, or if others can read its key.
        """
        try:
            return cls(folder, StagedFile(folder / cls.key_file, parse_signing_key))
        except FileNotFoundError:
            raise OperatorMistake(
                f"There is no {cls.what} in {folder}: `scoreboard up` creates one"
            ) from None

    @property
    def keys(self) -> Versions[SigningKey]:
        """The keys as they are in the folder now; the last valid ones if it cannot be read."""
        return self._files.read()

    @property
    def key_set(self) -> bytes:
        """The JWK set of all keys; the current one is the first."""
        # The current and the previous key are the same for a moment of a rotation.
        jwks = {key.kid: key.jwk for key in self.keys.all}
        return json.dumps({"keys": list(jwks.values())}, indent=2).encode()

    def publish(self) -> bool:
        """Write the key set if it is missing or of other keys; return whether it was written."""
        folder = self.jwks_file.parent
        # Locked, so that a slower process does not replace the set with an older one.
        with _locked(folder):
            document = self.key_set
            if self.jwks_file.exists() and self.jwks_file.read_bytes() == document:
                return False
            aside = _write_temporary(folder, document)
            aside.chmod(0o644)
            aside.replace(self.jwks_file)
        return True

    def sign(
        self,
        claims: Mapping[str, Any],
        *,
        key: SigningKey | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Sign claims; ``key`` is another key than the current one, to try it."""
        key = key or self.keys.current
        headers = {"kid": key.kid, **(headers or {})}
        return jwt.encode(dict(claims), key.private, algorithm="ES256", headers=headers)


class LocalIssuer(_Signer):
    """An issuer of tokens; SCOREBOARD_JWKS_FILE is its key set."""

    what = "local issuer"
    key_file = KEY_FILE
    key_set_file = JWKS_FILE

    def __init__(self, folder: Path, keys: StagedFile[SigningKey]) -> None:
        super().__init__(folder, keys)
        self.issuer: Final = _name(folder)
        """The ``iss`` of its tokens: set SCOREBOARD_ISSUER to it."""

    @classmethod
    def create(cls, folder: Path, *, issuer: str | None = None) -> Self:
        """Create the issuer of a folder, or load the existing one; write its key set.

        ``issuer`` becomes its ``iss``, such as its URL; None keeps the current one. Raises
        OperatorMistake as ``load`` does.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if issuer is not None and issuer != _name(folder):
            _write_temporary(folder, issuer.encode()).replace(folder / NAME_FILE)
        return super().create(folder)

    def issue(
        self,
        sub: str,
        scopes: Iterable[str],
        ttl_s: int = 3600,
        *,
        audience: str = "scoreboard",
        key: SigningKey | None = None,
    ) -> str:
        """Sign a token for ``sub`` with ``scopes``, valid for ``ttl_s`` seconds from now.

        ``key`` is another key than the current one, to try it. Raises OperatorMistake for a subject
        that is not a valid userId.
        """
        if not is_identifier(sub):
            raise OperatorMistake(
                "The subject must be 1 to 128 characters of A-Z a-z 0-9 . _ | : @ -"
            )
        if ttl_s < 1:
            raise OperatorMistake("A token must be valid for at least one second")
        now_s = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": audience,
            "sub": sub,
            "scope": " ".join(scopes),
            "iat": now_s,
            "exp": now_s + ttl_s,
            "jti": uuid.uuid4().hex,
        }
        return self.sign(claims, key=key)


class LocalProver(_Signer):
    """A game server that signs proofs of actions; SCOREBOARD_PROOF_JWKS_FILE is its key set."""

    what = "key for proofs"
    key_file = PROOF_KEY_FILE
    key_set_file = PROOF_JWKS_FILE

    def prove(
        self,
        user: str,
        action: str,
        points: int,
        ttl_s: int = 300,
        *,
        boards: Sequence[str] = (),
        audience: str | None = None,
    ) -> str:
        """Sign that a user did an action, for ``ttl_s`` seconds from now."""
        now_s = int(time.time())
        claims: dict[str, Any] = {
            "sub": user,
            "actionId": action,
            "points": points,
            "iat": now_s,
            "exp": now_s + ttl_s,
        }
        if boards:
            claims["boards"] = list(boards)
        if audience is not None:
            claims["aud"] = audience
        return self.sign(claims, headers={"typ": PROOF_TYPE})


def make_signing_key() -> Secret:
    """Make a new key and return its PEM."""
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Secret(pem.decode())


def parse_signing_key(pem: bytes) -> SigningKey:
    """Parse the PEM of a private key.

    Raises ValueError, without the content, if it is not a P-256 key.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("is not a private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ValueError("is not a P-256 key")
    return SigningKey(key, _jwk(key))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _name(folder: Path) -> str:
    try:
        return (folder / NAME_FILE).read_text()
    except FileNotFoundError:
        return LOCAL_ISSUER


def _jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """Return the public key; its kid is the RFC 7638 thumbprint, which identifies the key."""
    shape = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    members = {name: str(shape[name]) for name in ("crv", "kty", "x", "y")}
    canonical = json.dumps(members, separators=(",", ":"), sort_keys=True).encode()
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=")
    return members | {"kid": thumbprint.decode(), "alg": "ES256", "use": "sig"}


def _write_temporary(folder: Path, content: bytes) -> Path:
    """Write a temporary file that only its owner can read."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".new-")
    made = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    return made
