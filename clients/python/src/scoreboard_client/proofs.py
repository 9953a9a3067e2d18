"""Sign proofs of actions in a game server. Needs the extra `proofs`.

key = ProofKey(Path("proof-key.pem").read_bytes())
key.key_set                               # what the service reads
key.sign("alice", "raid:77", 250)         # what the player sends with the action
"""

import base64
import hashlib
import json
import time
from collections.abc import Sequence

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm


class ProofKey:
    """A private key for ES256, as a PEM file. Whoever has it can award points to anybody."""

    def __init__(self, pem: bytes) -> None:
        """Raise ValueError if this is not an unencrypted key on the curve P-256."""
        key = load_pem_private_key(pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise ValueError("the key is not an EC key on the curve P-256")
        self._key = key
        shape = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        members = {name: shape[name] for name in ("crv", "kty", "x", "y")}
        canonical = json.dumps(members, separators=(",", ":"), sort_keys=True).encode()
        digest = hashlib.sha256(canonical).digest()
        self.kid = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        """The id of the key: its thumbprint (RFC 7638)."""
        self.jwk: dict[str, str] = {**members, "kid": self.kid, "alg": "ES256", "use": "sig"}
        """The public key."""

    @property
    def key_set(self) -> str:
        """The key set with this key, as JSON."""
        return json.dumps({"keys": [self.jwk]})

    def sign(
        self,
        user_id: str,
        action_id: str,
        points: int,
        *,
        boards: Sequence[str] = (),
        audience: str | None = None,
        life_s: float = 300.0,
    ) -> str:
        """Sign that a user did an action that is worth these points, on up to eight boards.

        Without `boards` it is valid where its kind counts. The service accepts a life of at most
        600 s by default.
        """
        claims: dict[str, object] = {
            "sub": user_id,
            "actionId": action_id,
            "points": points,
            "exp": int(time.time() + life_s),
        }
        if boards:
            claims["boards"] = list(boards)
        if audience is not None:
            claims["aud"] = audience
        headers = {"typ": "scoreboard-proof+jwt", "kid": self.kid}
        return jwt.encode(claims, self._key, algorithm="ES256", headers=headers)
