"""Where the development issuer may run, for which pages, and with what secret.

Called by `cli.issuer`, which runs it, and `cli.commands.up`, which must know its name
beforehand. What stays true: nothing but this machine can reach it, or be given what it issues.
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
    """Give the issuer's address on a loopback IP, which is also its name in tokens.

    Raises OperatorMistake where others could reach it.
    """
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise OperatorMistake(
            f"The development issuer asks for no password: it listens on 127.0.0.1 or ::1, "
            f"not on {host!r}"
        )
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def check_redirect_uri(uri: str) -> None:
    """Raise OperatorMistake where ``uri`` is no plain address of a page on this machine."""
    parts = urlsplit(uri)
    if (
        not is_loopback_url(uri)
        or parts.scheme != "http"
        or parts.query
        or parts.fragment
        or "@" in uri
    ):
        raise OperatorMistake(
            f"The development issuer sends players back to pages on this machine only, not {uri!r}"
        )


def is_loopback_url(url: str) -> bool:
    """Tell whether only this machine can reach an address."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def load_client_secret(folder: Path) -> str:
    """Give the game servers' client secret of a folder, made at the first call.

    Raises OperatorMistake where others may read it, or it was shortened.
    """
    path = folder / SECRET_FILE
    if not path.exists():
        write_private(path, secrets.token_urlsafe(SECRET_LENGTH_MIN))
    if path.stat().st_mode & 0o077:
        raise OperatorMistake(f"{path} may be read by others: chmod 600 {path}")
    secret = path.read_text().strip()
    if len(secret) < SECRET_LENGTH_MIN:
        raise OperatorMistake(f"{path} holds no secret; remove it, and a new one is made")
    return secret
