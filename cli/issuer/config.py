"""The address, the redirect URIs and the secrets of the development issuer.

Invariant: only this machine can reach the issuer, and it redirects to pages of this machine only.
"""

import secrets
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cli.embedded.data_folder import write_private
from scoreboard.errors import OperatorMistake
from scoreboard.runtime.settings import Secret
from scoreboard.security.staged_file import StagedFile

PORT: Final = 8002
SECRET_FILE: Final = "game-server-secret"  # noqa: S105 (a file name)
ADMIN_PASSWORD_FILE: Final = "admin-password"  # noqa: S105 (a file name)
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


def load_client_secrets(folder: Path) -> StagedFile[Secret]:
    """Return the client secrets of the game servers in a folder; the first call creates one.

    Raises OperatorMistake if other users can read it, or if it is too short.
    """
    return _load_secret(folder / SECRET_FILE)


def load_admin_passwords(folder: Path) -> StagedFile[Secret]:
    """Return the passwords of the administrator in a folder; the first call creates one.

    Raises OperatorMistake if other users can read it, or if it is too short.
    """
    return _load_secret(folder / ADMIN_PASSWORD_FILE)


def _load_secret(path: Path) -> StagedFile[Secret]:
    if not path.exists():
        write_private(path, make_client_secret().reveal())
    return StagedFile(path, parse_client_secret)


def make_client_secret() -> Secret:
    """Make a new client secret."""
    return Secret(secrets.token_urlsafe(SECRET_LENGTH_MIN))


def parse_client_secret(content: bytes) -> Secret:
    """Parse the content of a file.

    Raises ValueError, without the content, if it is not a client secret.
    """
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if len(text) < SECRET_LENGTH_MIN:
        raise ValueError("contains no valid secret; remove it to create a new one")
    return Secret(text)
