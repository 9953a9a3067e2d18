"""Write the configuration of the OAuth 2.0 provider for development, with a signing key of its own.

Runs as the service `oauth-key` of docker-compose.yml, before the provider. The provider gives each
key the same kid. With a new key at each start, as by default, services would therefore refuse its
tokens until they read the key set again. The key of a file that exists is kept.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

KEY_BITS = 2048


def new_key() -> str:
    """Return a new private key as a JWK."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=KEY_BITS)
    jwk = RSAAlgorithm.to_jwk(key, as_dict=True)
    # The provider publishes all members but the private ones, and services ignore keys "to sign".
    del jwk["key_ops"]
    return json.dumps(jwk | {"use": "sig"})


def configure(template: Path, output: Path) -> bool:
    """Write the template with a key; return whether the key is new."""
    provider: dict[str, Any] = json.loads(template.read_text())
    settings = provider["tokenProvider"]["keyProvider"]
    is_new = not output.exists()
    if is_new:
        settings["initialKeys"] = new_key()
    else:
        stored = json.loads(output.read_text())
        settings["initialKeys"] = stored["tokenProvider"]["keyProvider"]["initialKeys"]
    handle, draft = tempfile.mkstemp(dir=output.parent, prefix=".new-")  # mode 0600
    with os.fdopen(handle, "w") as file:
        json.dump(provider, file)
        file.flush()
        os.fsync(handle)
    Path(draft).replace(output)
    return is_new


if __name__ == "__main__":
    made = configure(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stderr.write(f"{sys.argv[2]}: {'new key' if made else 'key kept'}\n")
