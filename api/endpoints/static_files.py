"""Serves the live page, its embedded forms and the API documents: the files of the web folder.

Only files that exist in the folder at startup have a path, so no request can name another file. The
live page is served with its modules merged into one file (api.endpoints.merged_page). A strict
Content-Security-Policy lets a page load from this origin only, and connect only to this origin, the
streamer and the issuer that signs players in. Only ``/embed``, which has no sign-in and no
controls, can be in a frame of another page.
"""

import asyncio
import hashlib
import mimetypes
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from api.documents.schemas import PageConfig, SignInConfig
from api.endpoints.board_reader import etag_matches
from api.endpoints.merged_page import MergedPage
from scoreboard.errors import NotFound
from scoreboard.runtime.settings import Settings, variable_name
from scoreboard.security.origins import frame_sources

INDEX: Final = "index.html"
EMBED: Final = "/embed"
OVERLAY: Final = "/overlay"
_SHORT: Final = {"/embed.html": EMBED, "/overlay.html": OVERLAY}
"""Pages with a second, shorter path."""

_FRAMED: Final = frozenset({EMBED, "/embed.html"})

_TYPES: Final = {".js": "text/javascript", ".mjs": "text/javascript", ".md": "text/markdown"}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'{inline}; img-src 'self' data:; "
    "font-src 'self'; manifest-src 'self'; connect-src 'self'{others}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors {frames}"
)
SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # File names do not change with their content: browsers revalidate, mostly with 304.
    "Cache-Control": "no-cache",
}
_NOT_ACCEPTED: Final = re.compile(r"q\s*=\s*0(\.0*)?")
IMMUTABLE: Final = "public, max-age=31536000, immutable"


class _File:
    """One file, read again after it changes."""

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
        """Read the file if it has changed.

        Raises NotFound if it no longer exists.
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
    """Map paths to the files of a folder; ``index.html`` is also served at its folder's path."""
    found: dict[str, _File] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or path.is_symlink():
            continue
        if any(part.startswith(".") for part in relative.parts):
            continue
        file = found[f"/{relative.as_posix()}"] = _File(path)
        if (short := _SHORT.get(f"/{relative.as_posix()}")) is not None:
            found[short] = file
        if path.name == INDEX:
            found["/" + relative.parent.as_posix().removeprefix(".")] = file
    return found


def content_security_policy(settings: Settings, address: str) -> str:
    """Return the Content-Security-Policy of a path."""
    others = _origin(settings.ws_public_url) + _origin(settings.sign_in_issuer)
    # Swagger UI sets style attributes.
    is_document = address == "/docs" or address.startswith("/docs/")
    return _POLICY.format(
        inline=" 'unsafe-inline'" if is_document else "",
        others=others,
        frames=_frames(settings) if address in _FRAMED else "'none'",
    )


def _frames(settings: Settings) -> str:
    """Return the origins whose pages may show ``/embed``, for the policy."""
    name = "frame_origins" if settings.frame_origins else "origins"
    return frame_sources(getattr(settings, name), variable_name(name))


def sign_in_config(settings: Settings, client_id: str) -> SignInConfig | None:
    """Return how a page signs in with its client; None without sign-in."""
    if not settings.sign_in_issuer or not client_id:
        return None
    return SignInConfig(settings.sign_in_issuer, client_id, settings.audience)


def _origin(url: str) -> str:
    """Return the origin of a URL as an additional source of a policy."""
    parts = urlsplit(url)
    return f" {parts.scheme}://{parts.netloc}" if parts.netloc else ""


def make_handlers(settings: Settings, folder: Path) -> list[HTTPRouteHandler]:
    """Make the handlers of the files and of the page's configuration.

    Raises SettingInvalid for an invalid origin of frames.
    """
    _frames(settings)
    files = find_files(folder)
    live = files.keys() & {"/", f"/{INDEX}"}
    others = {address: file for address, file in files.items() if address not in live}
    handlers = _configuration_handlers(settings)
    if others:
        handlers.append(_file_handler(settings, others))
    if live:
        handlers += _live_page_handlers(settings, MergedPage(folder, INDEX), sorted(live))
    return handlers


def _configuration_handlers(settings: Settings) -> list[HTTPRouteHandler]:
    @get("/config.json", include_in_schema=False, sync_to_thread=False)
    def config() -> Response[PageConfig]:
        known = _configuration(settings, settings.sign_in_client_id)
        return Response(known, headers=SECURITY_HEADERS)

    @get("/admin/config.json", include_in_schema=False, sync_to_thread=False)
    def admin_config() -> Response[PageConfig]:
        client_id = settings.admin_sign_in_client_id or settings.sign_in_client_id
        return Response(_configuration(settings, client_id), headers=SECURITY_HEADERS)

    return [config, admin_config]


def _file_handler(settings: Settings, files: dict[str, _File]) -> HTTPRouteHandler:
    @get(sorted(files), include_in_schema=False)
    async def page(request: Request[Any, Any, Any]) -> Response[bytes]:
        address = request.scope["path"].rstrip("/")
        file = files[address]
        await asyncio.to_thread(file.refresh)
        policy = content_security_policy(settings, address)
        return _respond(request, file.content, file.etag, file.media_type, policy)

    return page


def _live_page_handlers(
    settings: Settings, merged: MergedPage, addresses: list[str]
) -> list[HTTPRouteHandler]:
    configuration = msgspec.json.encode(_configuration(settings, settings.sign_in_client_id))
    policy = content_security_policy(settings, "/")

    @get(addresses, include_in_schema=False)
    async def live_page(request: Request[Any, Any, Any]) -> Response[bytes]:
        await asyncio.to_thread(merged.refresh)
        content = merged.html(configuration)
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return _respond(request, content, etag, "text/html", policy)

    @get(sorted(merged.assets), include_in_schema=False)
    async def asset(request: Request[Any, Any, Any]) -> Response[bytes]:
        await asyncio.to_thread(merged.refresh)
        found = merged.assets[request.scope["path"].rstrip("/")]
        headers = {**SECURITY_HEADERS, "Vary": "Accept-Encoding"}
        # During an upgrade, a page of the other version asks for another hash: it gets this
        # version's file, and does not keep it.
        if request.scope["query_string"] == f"v={found.digest}".encode():
            headers["Cache-Control"] = IMMUTABLE
        content = found.content
        if accepts_gzip(request.headers.get("accept-encoding", "")):
            headers["Content-Encoding"] = "gzip"
            content = found.compressed
        return Response(content, headers=headers, media_type=found.media_type)

    return [live_page, asset]


def accepts_gzip(accepted: str) -> bool:
    """Return whether the header Accept-Encoding names gzip, with a quality other than 0."""
    for coding in accepted.lower().split(","):
        name, *parameters = (part.strip() for part in coding.split(";"))
        if name == "gzip":
            return not any(_NOT_ACCEPTED.fullmatch(one) for one in parameters)
    return False


def _configuration(settings: Settings, client_id: str) -> PageConfig:
    return PageConfig(settings.ws_public_url, sign_in_config(settings, client_id))


def _respond(
    request: Request[Any, Any, Any], content: bytes, etag: str, media_type: str, policy: str
) -> Response[bytes]:
    headers = {**SECURITY_HEADERS, "Content-Security-Policy": policy, "ETag": etag}
    if etag_matches(request.headers.get("if-none-match"), etag):
        return Response(b"", status_code=304, headers=headers, media_type=media_type)
    return Response(content, headers=headers, media_type=media_type)
