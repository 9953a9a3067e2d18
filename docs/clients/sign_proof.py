"""Sign proofs of actions in a game server.

    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out proof-key.pem
    python sign_proof.py jwks proof-key.pem
    python sign_proof.py sign proof-key.pem alice raid:77 250

Needs `pip install "pyjwt[crypto]"`.
"""

import base64
import hashlib
import json
import sys
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm

LIFE_S = 300
"""A player must send the proof within this time; the service accepts at most 600."""


def public_key(pem: bytes) -> dict[str, str]:
    """Return the JWK of the public key; its kid is the thumbprint of RFC 7638."""
    key = load_pem_private_key(pem, password=None)
    shape = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    members = {name: shape[name] for name in ("crv", "kty", "x", "y")}
    canonical = json.dumps(members, separators=(",", ":"), sort_keys=True).encode()
    kid = base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=").decode()
    return {**members, "kid": kid, "alg": "ES256", "use": "sig"}


def sign(pem: bytes, user_id: str, action_id: str, points: int) -> str:
    """Sign that a user did an action, which is worth these points."""
    return jwt.encode(
        {
            "sub": user_id,
            "actionId": action_id,
            "points": points,
            "exp": int(time.time()) + LIFE_S,
        },
        pem,
        algorithm="ES256",
        headers={"typ": "scoreboard-proof+jwt", "kid": public_key(pem)["kid"]},
    )


def main() -> None:
    """Print a key set or a proof."""
    match sys.argv[1:]:
        case ["jwks", path]:
            print(json.dumps({"keys": [public_key(Path(path).read_bytes())]}))
        case ["sign", path, user_id, action_id, points]:
            print(sign(Path(path).read_bytes(), user_id, action_id, int(points)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
