"""oEmbed 1.0 of the board (``GET /oembed``): the frame for a page's address, for sites and editors.

No board is read, so a response tells nothing about private boards.

Invariants: only addresses of pages of the request's own host have a frame; the HTML contains
nothing of the request but a checked host, board, number and theme.
"""

import html
import re
from typing import Any, Final
from urllib.parse import SplitResult, urlencode, urlsplit

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from api.endpoints.static_files import EMBED, SECURITY_HEADERS
from scoreboard.errors import Invalid, NotFound
from scoreboard.http.query import parse_query
from scoreboard.model import BOARD_PATTERN, WATCHED_TOP

PATH: Final = "/oembed"

PAGES: Final = frozenset({"", "/", "/index.html", EMBED, "/embed.html"})
"""Paths of pages that show a board."""

THEMES: Final = frozenset({"dark", "light"})
WIDTH: Final = 480
ROW_HEIGHT: Final = 40
EDGE_HEIGHT: Final = 60
"""Height of the heading and the edges of the frame."""

_HOST: Final = re.compile(r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_SIZE: Final = re.compile(r"[1-9][0-9]{0,4}")
_ROWS: Final = re.compile(r"[1-9]|10")


class OEmbedReply(Struct, frozen=True):
    """A response of oEmbed 1.0, of the type ``rich``. Sizes are in pixels."""

    type: str
    version: str
    title: str
    provider_name: str
    provider_url: str
    html: str
    width: int
    height: int
    cache_age: int


def describe(query: bytes, host: str) -> OEmbedReply:
    """Return the frame for the ``url`` of a query; ``host`` is that of the request.

    Raises Malformed or Invalid for a query, and NotFound for a URL that is no page with a board.
    """
    given = parse_query(query)
    if given.get("format", "json") != "json":
        raise Invalid("The only format is json")
    page = _page_of(given.get("url", ""), host)
    shown = _parameters_of(page)
    rows = int(shown.get("rows", WATCHED_TOP))
    width = min(WIDTH, _limit(given, "maxwidth", WIDTH))
    highest = _limit(given, "maxheight", EDGE_HEIGHT + rows * ROW_HEIGHT)
    fitting = max((highest - EDGE_HEIGHT) // ROW_HEIGHT, 1)
    if fitting < rows:
        rows = fitting
        shown["rows"] = str(rows)
    height = min(EDGE_HEIGHT + rows * ROW_HEIGHT, highest)
    origin = f"{page.scheme.lower()}://{page.netloc.lower()}"
    source = f"{origin}{EMBED}" + (f"?{urlencode(shown)}" if shown else "")
    title = f"Scoreboard: {shown['board']}" if "board" in shown else "Scoreboard"
    frame = (
        f'<iframe src="{html.escape(source)}" title="{html.escape(title)}" '
        f'width="{width}" height="{height}" sandbox="allow-scripts allow-same-origin" '
        'loading="lazy" referrerpolicy="no-referrer" style="border:0"></iframe>'
    )
    return OEmbedReply(
        type="rich",
        version="1.0",
        title=title,
        provider_name="Scoreboard",
        provider_url=f"{origin}/",
        html=frame,
        width=width,
        height=height,
        cache_age=3600,
    )


def _page_of(url: str, host: str) -> SplitResult:
    try:
        page = urlsplit(url)
    except ValueError:
        raise Invalid("The parameter url is not a URL") from None
    if page.scheme.lower() not in {"http", "https"} or not page.netloc:
        raise Invalid("The parameter url must be the whole address of a page")
    is_own = page.netloc.lower() == host.lower() and _HOST.fullmatch(host.lower())
    if not is_own or page.path.rstrip("/") not in PAGES:
        raise NotFound("The parameter url is not the address of a board's page here")
    return page


def _parameters_of(page: SplitResult) -> dict[str, str]:
    """Return the parameters of the embedded page; the page ignores what it does not know."""
    given = parse_query(page.query.encode())
    shown: dict[str, str] = {}
    if board := given.get("board"):
        if not re.search(BOARD_PATTERN, board):
            raise NotFound("There is no board of this name")
        shown["board"] = board
    if _ROWS.fullmatch(given.get("rows", "")):
        shown["rows"] = given["rows"]
    if given.get("theme") in THEMES:
        shown["theme"] = given["theme"]
    return shown


def _limit(given: dict[str, str], name: str, default: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not _SIZE.fullmatch(text):
        raise Invalid(f"The parameter {name} must be a number of pixels")
    return int(text)


def make_handlers() -> list[HTTPRouteHandler]:
    """Make the handler."""

    @get(PATH, include_in_schema=False, sync_to_thread=False)
    def oembed(request: Request[Any, Any, Any]) -> Response[OEmbedReply]:
        reply = describe(request.scope["query_string"], request.headers.get("host", ""))
        return Response(reply, headers={**SECURITY_HEADERS, "Vary": "Host"})

    return [oembed]
