"""Serves the live page and the documents: files of the web folder, and nothing beside them.

Only what stands in the folder when the app is made has an address, so no request can name another
file. A strict policy lets the page load from here alone, and talk to the streamer and to the issuer
that signs players in alone.
"""

import asyncio
import hashlib
import mimetypes
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from api.documents.schemas import PageConfig, SignInConfig
from api.endpoints.board_reader import etag_matches
from scoreboard.errors import NotFound
from scoreboard.runtime.settings import Settings

INDEX: Final = "index.html"

_TYPES: Final = {".js": "text/javascript", ".mjs": "text/javascript", ".md": "text/markdown"}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'{inline}; img-src 'self' data:; "
    "font-src 'self'; manifest-src 'self'; connect-src 'self'{others}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
COMMON: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Names do not change with their content: a browser asks each time and mostly hears 304.
    "Cache-Control": "no-cache",
}


class _File:
    """One file of the page, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = (0, 0)
        self.content = b""
        self.etag = ""
        # Litestar adds the charset to text.
        self.media_type = (
            _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
        )

    def refresh(self) -> None:
        """Read the file where it has changed.

        Raises NotFound where it has gone.
        """
        try:
            facts = self._path.stat()
            mark = (facts.st_mtime_ns, facts.st_size)
            if mark != self._mark:
                self.content = self._path.read_bytes()
                self.etag = f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'
                self._mark = mark
        except OSError:
            raise NotFound from None


def find_files(folder: Path) -> dict[str, _File]:
    """Give each file of the folder its address; ``index.html`` also gets its folder's."""
    found: dict[str, _File] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or path.is_symlink():
            continue
        if any(part.startswith(".") for part in relative.parts):
            continue
        file = found[f"/{relative.as_posix()}"] = _File(path)
        if path.name == INDEX:
            found["/" + relative.parent.as_posix().removeprefix(".")] = file
    return found


def policy(settings: Settings, address: str) -> str:
    """Give the Content-Security-Policy of an address."""
    others = _origin(settings.ws_public_url) + _origin(settings.sign_in_issuer)
    # The documents' viewer sets style attributes as it draws.
    is_document = address == "/docs" or address.startswith("/docs/")
    return _POLICY.format(inline=" 'unsafe-inline'" if is_document else "", others=others)


def sign_in(settings: Settings) -> SignInConfig | None:
    """Give how the page signs players in; None where it does not."""
    if not settings.sign_in_issuer or not settings.sign_in_client_id:
        return None
    return SignInConfig(settings.sign_in_issuer, settings.sign_in_client_id, settings.audience)


def _origin(url: str) -> str:
    """Give the origin of an address as one more source of a policy."""
    parts = urlsplit(url)
    return f" {parts.scheme}://{parts.netloc}" if parts.netloc else ""


def make_handlers(settings: Settings, folder: Path) -> list[HTTPRouteHandler]:
    """Make the handlers of the page's files and of what the page must know."""
    files = find_files(folder)

    @get(sorted(files), include_in_schema=False)
    async def page(request: Request[Any, Any, Any]) -> Response[bytes]:
        address = request.scope["path"].rstrip("/") or "/"
        file = files[address]
        await asyncio.to_thread(file.refresh)
        headers = {
            **COMMON,
            "Content-Security-Policy": policy(settings, address),
            "ETag": file.etag,
        }
        if etag_matches(request.headers.get("if-none-match"), file.etag):
            return Response(b"", status_code=304, headers=headers, media_type=file.media_type)
        return Response(file.content, headers=headers, media_type=file.media_type)

    @get("/config.json", include_in_schema=False, sync_to_thread=False)
    def config() -> Response[PageConfig]:
        known = PageConfig(settings.ws_public_url, settings.boards, sign_in(settings))
        return Response(known, headers=COMMON)

    return [page, config] if files else [config]
