"""oEmbed: which addresses have a frame, and that nothing of the request gets into its HTML."""

import re
from urllib.parse import urlencode

import pytest

from api.endpoints.oembed import describe
from scoreboard.errors import Invalid, Malformed, NotFound

HOST = "play.example:8000"


def frame(url: str, host: str = HOST, **more: str) -> dict[str, object]:
    reply = describe(urlencode({"url": url} | more).encode(), host)
    return {name: getattr(reply, name) for name in reply.__struct_fields__}


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://play.example:8000/", "https://play.example:8000/embed"),
        ("https://play.example:8000", "https://play.example:8000/embed"),
        ("HTTPS://Play.Example:8000/embed", "https://play.example:8000/embed"),
        (
            "http://play.example:8000/embed?board=main&rows=5&theme=dark",
            "http://play.example:8000/embed?board=main&amp;rows=5&amp;theme=dark",
        ),
        (
            "https://play.example:8000/index.html?board=a.b&rows=11&theme=%22x&user=%3Cb%3E",
            "https://play.example:8000/embed?board=a.b",
        ),
    ],
)
def test_addresses_of_the_own_pages_have_a_frame(url: str, source: str) -> None:
    reply = frame(url)
    assert (reply["type"], reply["version"]) == ("rich", "1.0")
    assert f'<iframe src="{source}" ' in str(reply["html"])
    assert 'sandbox="allow-scripts allow-same-origin"' in str(reply["html"])


@pytest.mark.parametrize(
    "url",
    [
        *("https://evil.test/", "https://play.example/", "https://play.example:8001/embed"),
        *("https://evil.test/embed?u=play.example:8000", "https://play.example:8000@evil.test/"),
        *("https://play.example:8000.evil.test/", "https://user@play.example:8000/"),
        *("https://play.example:8000/admin", "https://play.example:8000/api/scores/me"),
        *("https://play.example:8000/embed/../admin", "https://play.example:8000//evil.test/"),
        "https://play.example:8000/embed?board=%3Cscript%3E",
        'https://play.example:8000/embed?board="onload=alert(1)',
        "https://play.example:8000/embed?board=..",
        "https://play.example:8000/embed?board=main%0A",
    ],
)
def test_other_addresses_are_not_found(url: str) -> None:
    with pytest.raises(NotFound):
        frame(url)


@pytest.mark.parametrize(
    "url",
    ["", "embed", "/embed", "//play.example:8000/", "javascript:alert(1)", "http://[", "ftp:"],
)
def test_what_is_no_web_address_is_invalid(url: str) -> None:
    with pytest.raises(Invalid):
        frame(url)


@pytest.mark.parametrize("host", ['"><script>', "a b", "", "x;y", "é.example"])
def test_an_unusual_host_has_no_frame(host: str) -> None:
    with pytest.raises((NotFound, Invalid)):
        frame(f"https://{host}/", host=host)


@pytest.mark.parametrize(
    "more", [{"format": "xml"}, {"maxwidth": "0"}, {"maxwidth": "-1"}, {"maxheight": "1e3"}]
)
def test_invalid_parameters_are_refused(more: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        frame(f"https://{HOST}/", **more)


def test_a_repeated_parameter_is_refused() -> None:
    with pytest.raises(Malformed):
        describe(b"url=a&url=b", HOST)


def test_the_frame_is_as_high_as_its_rows_and_within_the_limits() -> None:
    tall, short = (frame(f"https://{HOST}/?rows={rows}") for rows in ("10", "1"))
    assert tall["height"] - short["height"] == 9 * 40  # type: ignore[operator]
    small = frame(f"https://{HOST}/", maxwidth="200", maxheight="100", format="json", dnt="1")
    assert (small["width"], small["height"]) == (200, 100)
    sizes = re.findall(r'(?:width|height)="(\d+)"', str(small["html"]))
    assert sizes == ["200", "100"]
    assert f"https://{HOST}/embed?rows=1&quot;" in str(small["html"]).replace('"', "&quot;")
    lower = frame(f"https://{HOST}/?rows=7", maxheight="199")
    assert (lower["height"], "rows=3" in str(lower["html"])) == (180, True)
