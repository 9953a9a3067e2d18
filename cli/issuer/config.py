"""The address, the redirect URIs and the client secret of the development issuer.

Invariant: only this machine can reach the issuer, and it redirects to pages of this machine only.
"""

import secrets
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cli.embedded.data_folder import write_private
from scoreboard.errors import OperatorMistake

PORT: Final = 8002
SECRET_FILE: Final = "game-server-secret"  # noqa: S105 (a file name)
SECRET_LENGTH_MIN: Final = 32


def issuer_url(host: str, port: int) -> str:
    """Return the issuer's address on a loopback IP, which is also its name in tokens.

    Raises OperatorMistake if other machines could reach it.
    """
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise OperatorMistake(
            f"The development issuer has no passwords and listens on 127.0.0.1 or ::1 only, "
            f"not on {host!r}"
        )
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def check_redirect_uri(uri: str) -> None:
    """Raise OperatorMistake unless ``uri`` is the plain http address of a page on this machine."""
    parts = urlsplit(uri)
    if (
        not is_loopback_url(uri)
        or parts.scheme != "http"
        or parts.query
        or parts.fragment
        or "@" in uri
    ):
        raise OperatorMistake(
            f"The development issuer redirects to pages on this machine only, not to {uri!r}"
        )


def is_loopback_url(url: str) -> bool:
    """Return whether an address is a loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def load_client_secret(folder: Path) -> str:
    """Return the client secret of the game servers in a folder, created at the first call.

    Raises OperatorMistake if other users can read it, or if it is too short.
    """
    path = folder / SECRET_FILE
    if not path.exists():
        write_private(path, secrets.token_urlsafe(SECRET_LENGTH_MIN))
    if path.stat().st_mode & 0o077:
        raise OperatorMistake(f"Other users can read {path}; run chmod 600 {path}")
    secret = path.read_text().strip()
    if len(secret) < SECRET_LENGTH_MIN:
        raise OperatorMistake(f"{path} contains no valid secret; remove it to create a new one")
    return secret
