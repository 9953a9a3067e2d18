"""Keys and tokens of a fake issuer that the services are configured to trust."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://issuer.test/"
AUDIENCE = "scoreboard"

MakeToken = Callable[..., str]


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A signing key with its id and algorithm."""

    kid: str
    algorithm: str
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

    @property
    def jwk(self) -> dict[str, Any]:
        """Return the public key as a JWK."""
        shape = jwt.get_algorithm_by_name(self.algorithm).to_jwk(
            self.private.public_key(),
            as_dict=True,
        )
        kept = {name: value for name, value in shape.items() if name != "key_ops"}
        return kept | {"kid": self.kid, "alg": self.algorithm, "use": "sig"}


@pytest.fixture(scope="session")
def rsa_key() -> KeyPair:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return KeyPair(kid="test-rsa", algorithm="RS256", private=private)


@pytest.fixture(scope="session")
def ec_key() -> KeyPair:
    private = ec.generate_private_key(ec.SECP256R1())
    return KeyPair(kid="test-ec", algorithm="ES256", private=private)


@pytest.fixture(scope="session")
def jwks(rsa_key: KeyPair, ec_key: KeyPair) -> dict[str, Any]:
    return {"keys": [rsa_key.jwk, ec_key.jwk]}


@pytest.fixture(scope="session")
def jwks_file(jwks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("issuer") / "jwks.json"
    path.write_text(json.dumps(jwks))
    return path


@pytest.fixture(scope="session")
def make_token(rsa_key: KeyPair) -> MakeToken:
    """Return a function that makes tokens; a claim overridden with None is left out.

    ``make_token("alice", "update:score", exp=0, key=ec_key, headers={"kid": "other"})``
    """

    def make(
        sub: str = "alice",
        scope: str | None = "update:score read:leaderboard",
        *,
        key: KeyPair | None = None,
        headers: dict[str, Any] | None = None,
        **overrides: Any,
    ) -> str:
        now_s = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": sub,
            "scope": scope,
            "iat": now_s,
            "exp": now_s + 3600,
        } | overrides
        present = {name: value for name, value in claims.items() if value is not None}
        signer = key or rsa_key
        return jwt.encode(
            present,
            signer.private,
            algorithm=signer.algorithm,
            headers={"kid": signer.kid} | (headers or {}),
        )

    return make
