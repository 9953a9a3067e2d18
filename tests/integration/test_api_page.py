"""The live page, the served documents, and names on the leaderboard."""

import json
import re
from html import unescape
from pathlib import Path

import psycopg
import pytest
from httpx import Response

from api.endpoints.static_files import find_files
from scoreboard.errors import SettingInvalid
from scoreboard.model import user_uuid
from tests.support.eventually import eventually_async
from tests.support.servers.api import LEADERBOARD_PATH, StartApi

FILES = [
    *("/", "/index.html", "/admin", "/admin/main.js"),
    *("/docs", "/docs/start.js", "/docs/swagger-ui/swagger-ui.css"),
    *("/embed", "/embed.html", "/embed.js", "/overlay", "/overlay.html"),
]


@pytest.mark.parametrize("address", FILES)
async def test_the_page_has_a_strict_content_security_policy(
    start_api: StartApi, address: str
) -> None:
    client = await start_api(open=(), ws_public_url="wss://live.example.com:8001/ws/scoreboard")
    answer = await client.get(address)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "connect-src 'self' wss://live.example.com:8001;" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = await client.get(address, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("settings", "frames"),
    [
        ({}, "'none'"),
        ({"origins": "https://a.example"}, "https://a.example"),
        ({"origins": "https://a.example", "frame_origins": "*"}, "*"),
        (
            {"frame_origins": "https://b.example:443,http://[::1]:3000,https://b.example"},
            "https://b.example http://[::1]:3000",
        ),
    ],
)
async def test_only_the_embedded_page_can_be_in_a_frame_and_of_listed_origins(
    start_api: StartApi, settings: dict[str, str], frames: str
) -> None:
    client = await start_api(open=(), **settings)
    for address in FILES:
        policy = (await client.get(address)).headers["content-security-policy"]
        framed = frames if address in {"/embed", "/embed.html"} else "'none'"
        assert policy.endswith(f"; frame-ancestors {framed}"), address


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("frame_origins", text) for text in ("self", "'self'", "https://a.example/", "https:")),
        *(("frame_origins", f"https://a{text}.example") for text in (";script-src", " *", "*")),
        ("origins", "https://a;script-src.example"),
    ],
)
async def test_an_origin_that_would_change_the_policy_is_refused(
    start_api: StartApi, name: str, value: str
) -> None:
    with pytest.raises(SettingInvalid, match=f"SCOREBOARD_{name.upper()}"):
        await start_api(open=(), **{name: value})


async def test_oembed_describes_the_frame_of_an_own_page(start_api: StartApi) -> None:
    client = await start_api(open=())
    own = f"http://127.0.0.1:{client.port}"
    answer = await client.get("/oembed", params={"url": f"{own}/?board=main", "format": "json"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert f'src="{own}/embed?board=main"' in answer.json()["html"]
    foreign = await client.get("/oembed", params={"url": "https://evil.test/?board=main"})
    assert (foreign.status_code, foreign.json()["type"]) == (404, "/docs/problems/not-found")
    for params in ({}, {"url": "x"}, {"url": own, "format": "xml"}):
        answer = await client.get("/oembed", params=params)
        assert (answer.status_code, answer.json()["type"]) == (422, "/docs/problems/invalid")


async def test_etag_weakened_by_a_compressing_proxy_still_matches(start_api: StartApi) -> None:
    """The comparison kept the W/ that nginx adds: such a browser downloaded every file again."""
    client = await start_api(open=())
    etag = (await client.get("/page.js")).headers["etag"]

    again = await client.get("/page.js", headers={"If-None-Match": f"W/{etag}"})

    assert again.status_code == 304


async def test_the_files_of_the_page_are_kept_by_browsers_for_good(start_api: StartApi) -> None:
    client = await start_api(open=())
    html = (await client.get("/")).text
    addresses = re.findall(r'"(/live\.(?:js|css)\?v=[0-9a-f]{16})"', html)
    assert len(addresses) == 2
    for address in addresses:
        answer = await client.get(address, headers={"Accept-Encoding": "gzip"})
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["x-content-type-options"] == "nosniff"
        plain = await client.get(address, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content  # the client has decompressed it
        assert plain.headers["vary"] == "Accept-Encoding"


async def test_a_page_of_another_version_gets_a_file_that_is_not_kept(start_api: StartApi) -> None:
    """Behind a gateway, two versions answer one page during an upgrade."""
    client = await start_api(open=())
    answer = await client.get("/live.js?v=0000000000000000")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"


async def test_the_page_contains_its_configuration(start_api: StartApi) -> None:
    client = await start_api(open=(), ws_public_url="ws://127.0.0.1:1/ws")
    html = (await client.get("/")).text
    content = re.findall(r'<meta name="scoreboard-config" content="([^"]*)">', html)
    assert json.loads(unescape(content[0])) == (await client.get("/config.json")).json()


async def test_everything_the_pages_load_is_served_by_the_api(start_api: StartApi) -> None:
    client = await start_api(open=())
    for page in ("/", "/admin", "/docs", "/embed", "/overlay"):
        html = (await client.get(page)).text
        found = re.findall(r'(?:src|href)="([^"#]+)"', html)
        assert found
        for address in found:
            if address.startswith(("data:", "?")):
                continue
            answer = await client.get(address if address.startswith("/") else f"/{address}")
            assert answer.status_code == 200, address


@pytest.mark.parametrize(
    "address",
    [
        "/../pyproject.toml",
        "/%2e%2e/pyproject.toml",
        "/..%2fpyproject.toml",
        "/docs/../../pyproject.toml",
        "/.env",
        "//etc/passwd",
        "/index.html%00.js",
    ],
)
async def test_files_outside_the_folder_are_not_served(start_api: StartApi, address: str) -> None:
    client = await start_api(open=())
    answer = await client.get(address)
    assert answer.status_code in {400, 404}


def test_hidden_files_and_links_are_not_served(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / "index.html").write_text("x")
    (tmp_path / "out").symlink_to("/etc/passwd")
    assert set(find_files(tmp_path)) == {"/", "/index.html"}


async def test_the_page_configuration_has_the_websocket_url_and_names_no_board(
    start_api: StartApi,
) -> None:
    """Anyone can read it, and a board may be private."""
    client = await start_api(open=(), boards="main,secret", ws_public_url="ws://127.0.0.1:1/ws")
    answer = await client.get("/config.json")
    assert answer.json()["ws"] == "ws://127.0.0.1:1/ws"
    assert "main" not in answer.text
    assert "secret" not in answer.text


@pytest.mark.parametrize(("own", "shown"), [("", "players"), ("administrators", "administrators")])
async def test_the_administrators_page_can_have_a_client_of_its_own(
    start_api: StartApi, own: str, shown: str
) -> None:
    client = await start_api(
        open=(),
        sign_in_issuer="https://issuer.example",
        sign_in_client_id="players",
        admin_sign_in_client_id=own,
    )

    async def client_id(path: str) -> str:
        return (await client.get(path)).json()["oauth"]["clientId"]

    assert await client_id("/config.json") == "players"
    assert await client_id("/admin/config.json") == shown


async def test_the_document_and_the_problems_are_served(start_api: StartApi) -> None:
    client = await start_api(open=())
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    problem = (await client.get("/nowhere")).json()
    page = await client.get(problem["type"])
    assert page.status_code == 200
    assert "Not found" in page.text
    assert (await client.get("/docs/problems")).text.count("<h2") > 15
    assert (await client.get("/docs/problems/none")).status_code == 404


async def test_known_names_are_added(start_api: StartApi, database_url: str) -> None:
    client = await start_api(database_url=database_url)
    for user in ("alice", "bob"):
        await client.update(user, "win:1")
    plain = await client.get(LEADERBOARD_PATH)
    assert all("name" not in row for row in plain.json()["leaderboard"])

    def rename(name: str) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "INSERT INTO users (id, external_id, name) VALUES (%s, 'alice', %s)"
                " ON CONFLICT (external_id) DO UPDATE SET name = excluded.name",
                (user_uuid("alice"), name),
            )

    rename("Alice")
    named = await client.get(LEADERBOARD_PATH, params={"names": "true"})
    assert [row.get("name") for row in named.json()["leaderboard"]] == ["Alice", None]
    tag = named.headers["etag"]

    async def again() -> Response:
        params, headers = {"names": "true"}, {"If-None-Match": tag}
        return await client.get(LEADERBOARD_PATH, params=params, headers=headers)

    assert (await again()).status_code == 304
    rename("Alice the Great")

    async def is_announced() -> bool:
        answer = await again()
        rows = answer.json()["leaderboard"] if answer.status_code == 200 else [{}]
        return rows[0].get("name") == "Alice the Great"

    await eventually_async(is_announced)


async def test_there_are_no_names_without_a_database(start_api: StartApi) -> None:
    client = await start_api()
    await client.update()
    answer = await client.get(LEADERBOARD_PATH, params={"names": "true"})
    assert answer.json()["leaderboard"] == [{"rank": 1, "userId": "alice", "score": 10}]
