"""Issues tokens without an identity provider: for development, tests and `scoreboard token`.

It has one EC P-256 key in a folder, readable only by its owner, next to the key set that the
services verify tokens with.
"""

import base64
import contextlib
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from scoreboard.errors import OperatorMistake
from scoreboard.model import is_identifier

LOCAL_ISSUER: Final = "urn:scoreboard:local"
"""The ``iss`` of its tokens until it has a URL: set SCOREBOARD_ISSUER to it."""

KEY_FILE: Final = "issuer-key.pem"
JWKS_FILE: Final = "jwks.json"
NAME_FILE: Final = "issuer-name"
"""Contains the ``iss`` if it is not LOCAL_ISSUER."""


class LocalIssuer:
    """An issuer with its key in a folder; use ``create`` or ``load``."""

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey) -> None:
        self.issuer: Final = _name(folder)
        """The ``iss`` of its tokens: set SCOREBOARD_ISSUER to it."""
        self.jwks_file: Final = folder / JWKS_FILE
        """The key set to point SCOREBOARD_JWKS_FILE at."""
        self._key = key
        self._jwk = _jwk(key)

    @classmethod
    def create(cls, folder: Path, *, issuer: str | None = None) -> "LocalIssuer":
        """Create the issuer of a folder, or load the existing one; write its key set.

        ``issuer`` becomes its ``iss``, such as its URL; None keeps the current one. Raises
        OperatorMistake as ``load`` does.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / KEY_FILE).exists():
            pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            # A link never overwrites: of two concurrent calls, one creates the key, both load it.
            made = _write_temporary(folder, pem)
            with contextlib.suppress(FileExistsError):
                os.link(made, folder / KEY_FILE)
            made.unlink()
        if issuer is not None and issuer != _name(folder):
            _write_temporary(folder, issuer.encode()).replace(folder / NAME_FILE)
        found = cls.load(folder)
        found.publish()
        return found

    @classmethod
    def load(cls, folder: Path) -> "LocalIssuer":
        """Load the issuer of a folder.

        Raises OperatorMistake if there is none, or if others can read its key.
        """
        path = folder / KEY_FILE
        try:
            if path.stat().st_mode & 0o077:
                raise OperatorMistake(f"{path} is readable by others: chmod 600 {path}")
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError:
            raise OperatorMistake(
                f"There is no local issuer in {folder}: `scoreboard up` creates one"
            ) from None
        except (ValueError, TypeError) as error:
            raise OperatorMistake(f"{path} is not a private key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise OperatorMistake(f"{path} is not a P-256 key")
        return cls(folder, key)

    def publish(self) -> None:
        """Write the key set if it is missing or of another key."""
        document = json.dumps({"keys": [self._jwk]}, indent=2).encode()
        if not self.jwks_file.exists() or self.jwks_file.read_bytes() != document:
            aside = _write_temporary(self.jwks_file.parent, document)
            aside.chmod(0o644)
            aside.replace(self.jwks_file)

    def issue(
        self,
        sub: str,
        scopes: Iterable[str],
        ttl_s: int = 3600,
        *,
        audience: str = "scoreboard",
    ) -> str:
        """Sign a token for ``sub`` with ``scopes``, valid for ``ttl_s`` seconds from now.

        Raises OperatorMistake for a subject that is not a valid userId.
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
        return jwt.encode(
            claims, self._key, algorithm="ES256", headers={"kid": str(self._jwk["kid"])}
        )


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
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
