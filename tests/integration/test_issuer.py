"""The development issuer over HTTP, in this process and as its own process."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.embedded.ports import find_free_port
from cli.issuer.__main__ import LIMITS
from cli.issuer.app import IssuerApp
from cli.issuer.form import FORM_LIFE_S, FormSigner
from cli.issuer.oauth import CODE_LIFE_S, AuthorizationServer
from scoreboard.http.server import Server
from scoreboard.runtime.settings import Secret, load
from scoreboard.runtime.sockets import bind_listener
from scoreboard.security.tokens import ADMIN, READ, UPDATE, UPDATE_ANY, LocalIssuer, Verifier
from tests.support.clients.forked import Forked, run_forked
from tests.support.clients.issuer import Player, redirect_parameters, signed_form_in
from tests.support.clients.smuggling import CHUNKS, HEADS
from tests.support.eventually import eventually

URL = "http://127.0.0.1:8002"
PAGE_URI = "http://127.0.0.1:8000/"
PAGE_ORIGIN = "http://127.0.0.1:8000"
SECRET = "s" * 43
PASSWORD = "p" * 43
START_S = 15.0


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer(tmp_path: Path) -> LocalIssuer:
    return LocalIssuer.create(tmp_path, issuer=URL)


@pytest.fixture
async def http(issuer: LocalIssuer, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    grants = AuthorizationServer(
        issuer, "scoreboard", lambda: [Secret(SECRET)], lambda: [Secret(PASSWORD)], clock=clock
    )
    uris = [PAGE_URI, "http://localhost:8000/"]
    app = IssuerApp(issuer, grants, FormSigner(clock=clock), uris).app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        yield client


@pytest.fixture
def player(http: httpx.AsyncClient) -> Player:
    return Player(http, URL, PAGE_URI)


def verifier_of(issuer: LocalIssuer) -> Verifier:
    return Verifier(
        load(
            {
                "REDIS_URL": "redis://nowhere",
                "SCOREBOARD_JWKS_FILE": str(issuer.jwks_file),
                "SCOREBOARD_ISSUER": issuer.issuer,
            }
        )
    )


# --- sign-in ---


async def test_a_player_signs_in_and_gets_a_valid_token(
    player: Player, issuer: LocalIssuer
) -> None:
    answer = redirect_parameters(await player.agree((await player.ask()).text, "auth0|42"))
    assert answer.keys() == {"code", "state", "iss"}
    assert (answer["state"], answer["iss"]) == (player.state, URL)

    response = await player.redeem(answer["code"])

    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    issued = response.json()
    assert (issued["token_type"], issued["expires_in"]) == ("Bearer", 3600)
    caller = await verifier_of(issuer).verify(issued["access_token"])
    assert (caller.subject, caller.issuer) == ("auth0|42", URL)
    assert caller.scopes == {UPDATE, READ}


async def test_the_administrator_signs_in_with_a_password(
    player: Player, issuer: LocalIssuer
) -> None:
    form = (await player.ask(scope=ADMIN)).text
    assert "administer boards and scores" in form
    assert 'type="password"' in form
    answer = redirect_parameters(await player.agree(form, "admin", password=PASSWORD))

    issued = (await player.redeem(answer["code"])).json()

    caller = await verifier_of(issuer).verify(issued["access_token"])
    assert (caller.subject, caller.scopes) == ("admin", {ADMIN})


@pytest.mark.parametrize(
    ("name", "password"),
    [("admin", "wrong"), ("admin", ""), ("admin", SECRET), ("alice", PASSWORD), ("alice", "ü")],
)
async def test_nobody_else_gets_the_scope_of_administrators(
    player: Player, name: str, password: str
) -> None:
    form = (await player.ask(scope=f"{READ} {ADMIN}")).text
    answer = await player.agree(form, name, password=password)
    assert answer.status_code == 422
    assert "The name or the password is wrong." in answer.text
    assert "location" not in answer.headers
    assert not password or f'value="{password}"' not in answer.text


async def test_a_player_of_the_name_admin_has_the_scopes_of_a_player(
    player: Player, issuer: LocalIssuer
) -> None:
    issued = (await player.redeem(await player.code("admin"))).json()
    caller = await verifier_of(issuer).verify(issued["access_token"])
    assert caller.scopes == {UPDATE, READ}


async def test_a_game_server_gets_a_valid_token(
    http: httpx.AsyncClient, issuer: LocalIssuer
) -> None:
    response = await http.post(
        f"{URL}/token", data={"grant_type": "client_credentials"}, auth=("game-server", SECRET)
    )
    assert response.headers["cache-control"] == "no-store"
    caller = await verifier_of(issuer).verify(response.json()["access_token"])
    assert (caller.subject, caller.scopes) == ("game-server", {UPDATE_ANY, READ})


@pytest.mark.parametrize("name", ["openid-configuration", "oauth-authorization-server"])
async def test_discovery_documents_contain_the_urls_of_the_issuer(
    http: httpx.AsyncClient, issuer: LocalIssuer, name: str
) -> None:
    found = (await http.get(f"{URL}/.well-known/{name}")).json()
    assert found["issuer"] == URL
    assert found["code_challenge_methods_supported"] == ["S256"]
    assert set(found["grant_types_supported"]) == {"authorization_code", "client_credentials"}
    assert (await http.get(found["jwks_uri"])).content == issuer.jwks_file.read_bytes()
    assert (await http.get(found["authorization_endpoint"])).status_code == 400
    assert (await http.post(found["token_endpoint"], data={"a": "b"})).status_code == 400


# --- refusals of the token endpoint ---


async def test_a_wrong_verifier_is_refused_and_uses_up_the_code(player: Player) -> None:
    code = await player.code()
    refused = await player.redeem(code, code_verifier="w" * 43)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    assert (await player.redeem(code)).json()["error"] == "invalid_grant"


async def test_a_code_is_redeemed_once(player: Player) -> None:
    code = await player.code()
    assert (await player.redeem(code)).status_code == 200
    again = await player.redeem(code)
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")


async def test_an_expired_code_is_refused(player: Player, clock: Clock) -> None:
    code = await player.code()
    clock.now_s += CODE_LIFE_S
    refused = await player.redeem(code)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


async def test_a_wrong_secret_gets_401_with_www_authenticate(http: httpx.AsyncClient) -> None:
    form = {"grant_type": "client_credentials"}
    refused = await http.post(f"{URL}/token", data=form, auth=("game-server", "wrong"))
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    assert refused.headers["www-authenticate"].startswith("Basic ")
    assert refused.headers["cache-control"] == "no-store"


async def test_a_game_server_cannot_request_the_scope_of_a_player(http: httpx.AsyncClient) -> None:
    form = {"grant_type": "client_credentials", "scope": UPDATE}
    refused = await http.post(f"{URL}/token", data=form, auth=("game-server", SECRET))
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_scope")


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b'{"grant_type": "client_credentials"}', "application/json", 415),
        (b"grant_type=client_credentials", "", 415),
        (b"a=" + b"x" * 20_000, "application/x-www-form-urlencoded", 413),
        (b"&".join(b"a%d=1" % n for n in range(40)), "application/x-www-form-urlencoded", 400),
        (b"grant_type=%ff", "application/x-www-form-urlencoded", 400),
        (b"\xff=1", "application/x-www-form-urlencoded", 400),
        (b"", "application/x-www-form-urlencoded", 400),
    ],
)
async def test_a_body_that_is_not_a_small_form_is_refused(
    http: httpx.AsyncClient, content: bytes, content_type: str, status: int
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    refused = await http.post(f"{URL}/token", content=content, headers=headers)
    assert (refused.status_code, refused.json()["error"]) == (status, "invalid_request")
    assert refused.headers["cache-control"] == "no-store"


# --- refusals of the authorization endpoint ---


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_challenge": None, "code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"scope": f"{UPDATE} {UPDATE_ANY}"}, "invalid_scope"),
        ({"response_type": "token"}, "unsupported_response_type"),
    ],
)
async def test_an_invalid_request_is_redirected_to_the_page_with_its_state(
    player: Player, changes: dict[str, str | None], error: str
) -> None:
    answer = redirect_parameters(await player.ask(**changes))
    assert (answer["error"], answer["state"], answer["iss"]) == (error, player.state, URL)


@pytest.mark.parametrize(
    "uri", ["https://evil.test/", "http://127.0.0.1:8000/elsewhere", "http://127.0.0.1:9999/"]
)
async def test_an_unregistered_redirect_uri_is_not_redirected_to(player: Player, uri: str) -> None:
    answer = await player.ask(redirect_uri=uri)
    assert answer.status_code == 400
    assert "location" not in answer.headers
    assert "redirect_uri" in answer.text


async def test_a_cancelled_sign_in_redirects_with_access_denied(player: Player) -> None:
    answer = redirect_parameters(await player.agree((await player.ask()).text, "", answer="cancel"))
    assert answer == {"error": "access_denied", "state": player.state, "iss": URL}


@pytest.mark.parametrize("name", ["", "   ", "a b", "ü", "x" * 129, '"><script>'])
async def test_an_invalid_name_shows_the_form_again(player: Player, name: str) -> None:
    again = await player.agree((await player.ask()).text, name)
    assert again.status_code == 422
    assert 'aria-invalid="true"' in again.text
    assert "<script" not in again.text
    assert redirect_parameters(await player.agree(again.text, "alice"))["code"]


@pytest.mark.parametrize("origin", [PAGE_ORIGIN, "http://localhost:8002", "null", None])
async def test_a_form_sent_from_another_page_is_refused(player: Player, origin: str | None) -> None:
    form = {"form": signed_form_in((await player.ask()).text), "name": "mallory"}
    headers = {} if origin is None else {"Origin": origin}
    refused = await player.http.post(f"{URL}/authorize", data=form, headers=headers)
    assert refused.status_code == 403
    assert "location" not in refused.headers


async def test_a_form_with_the_content_of_another_is_refused(player: Player) -> None:
    form, other = (await player.ask()).text, (await player.ask(scope=READ)).text
    # The signature of one form with the content of another.
    mixed = signed_form_in(form)[:40] + signed_form_in(other)[40:]
    refused = await player.agree(form, "alice", form=mixed)
    assert refused.status_code == 400


async def test_an_expired_form_is_refused(player: Player, clock: Clock) -> None:
    form = (await player.ask()).text
    clock.now_s += FORM_LIFE_S
    assert (await player.agree(form, "alice")).status_code == 400


# --- browsers ---


async def test_the_form_cannot_be_framed_scripted_or_cached(player: Player) -> None:
    headers = (await player.ask()).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    assert f"form-action 'self' {PAGE_ORIGIN} http://localhost:8000" in policy
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [(PAGE_ORIGIN, PAGE_ORIGIN), ("http://127.0.0.1:9999", None), ("null", None), (None, None)],
)
async def test_only_the_page_can_read_responses_cross_origin(
    http: httpx.AsyncClient, origin: str | None, allowed: str | None
) -> None:
    headers = {} if origin is None else {"Origin": origin}
    answers = [
        await http.post(f"{URL}/token", data={"grant_type": "x"}, headers=headers),
        await http.get(f"{URL}/.well-known/openid-configuration", headers=headers),
    ]
    for answer in answers:
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert answer.headers["vary"] == "Origin"


async def test_the_form_cannot_be_read_cross_origin(player: Player) -> None:
    headers = {"Origin": PAGE_ORIGIN}
    form = await player.http.get(
        f"{URL}/authorize", params=player.authorization_query(), headers=headers
    )
    assert form.status_code == 200
    assert "access-control-allow-origin" not in form.headers


@pytest.mark.parametrize("host", ["evil.test", "evil.test:8002", "localhost:8002", "127.0.0.1"])
@pytest.mark.parametrize("path", ["/authorize", "/jwks.json"])
async def test_a_request_with_another_host_is_refused(
    http: httpx.AsyncClient, host: str, path: str
) -> None:
    assert (await http.get(f"{URL}{path}", headers={"Host": host})).status_code == 421


# --- over sockets ---


@asynccontextmanager
async def serving(issuer: LocalIssuer) -> AsyncIterator[int]:
    """Serve an issuer as its process does; yield the port."""
    grants = AuthorizationServer(issuer, "scoreboard", lambda: [Secret(SECRET)])
    app = IssuerApp(issuer, grants, FormSigner(), [PAGE_URI])
    with bind_listener("127.0.0.1", 0) as listener:
        async with Server(app, LIMITS).listening(listener):
            yield listener.getsockname()[1]


async def talk(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


TOKEN_FORM = f"grant_type=client_credentials&client_id=game-server&client_secret={SECRET}"


def token_request(*lines: str, target: str = "/token") -> bytes:
    usual = ["Host: 127.0.0.1:8002", "Content-Type: application/x-www-form-urlencoded"]
    usual.append(f"Content-Length: {len(TOKEN_FORM)}")
    return "\r\n".join([f"POST {target} HTTP/1.1", *usual, *lines, "", TOKEN_FORM]).encode()


async def test_an_upgrade_header_does_not_affect_the_form(issuer: LocalIssuer) -> None:
    async with serving(issuer) as port:
        for lines in ((), ("Connection: Upgrade", "Upgrade: h2c")):
            assert b'"access_token"' in await talk(port, token_request(*lines))


async def test_an_ambiguous_request_gets_an_error_of_the_issuer(issuer: LocalIssuer) -> None:
    async with serving(issuer) as port:
        for name, data in (HEADS | CHUNKS).items():
            answer = await talk(port, data.replace(b" / ", b" /token "))
            head, _, body = answer.partition(b"\r\n\r\n")
            assert answer.count(b"HTTP/1.1 ") == 1, name
            assert head.split()[1] in {b"400", b"415", b"421"}, name
            assert b"\r\nconnection: close" in head, name
            assert b"no-store" in head, name
            assert b"access_token" not in body, name
        answer = await talk(port, HEADS["two Hosts"])
        assert b'"error_description":"The header host must not be repeated"}' in answer


@pytest.mark.parametrize("target", ["/token/", "//token", "/%74oken", "/x/../token"])
async def test_another_spelling_of_a_path_is_refused(issuer: LocalIssuer, target: str) -> None:
    async with serving(issuer) as port:
        answer = await talk(port, token_request(target=target))
    assert answer.split()[1] in {b"400", b"404"}


async def test_a_form_that_is_too_large_is_refused_before_it_arrives(issuer: LocalIssuer) -> None:
    head = token_request().partition(b"\r\nContent-Length")[0]
    async with serving(issuer) as port:
        answer = await talk(port, head + b"\r\nContent-Length: 999999\r\n\r\n")
    assert answer.split()[1] == b"413"


async def test_silent_connections_do_not_block_others(issuer: LocalIssuer) -> None:
    async with serving(issuer) as port:
        silent = [
            (await asyncio.open_connection("127.0.0.1", port))[1]
            for _ in range(LIMITS.connections_per_address + 20)
        ]
        assert b'"access_token"' in await talk(port, token_request())
        for writer in silent:
            writer.transport.abort()


# --- as a process ---


class Process:
    """`python -m cli.issuer`, stopped when a test ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder.parent / "issuer.log"
        self._running: Forked | None = None

    def start(self) -> None:
        with self.log.open("wb") as log:
            words = arguments(self.folder, self.port)
            self._running = Forked("cli.issuer", words, os.environ, output=log)
        eventually(self.is_up, within_s=START_S)

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/jwks.json", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        assert self._running is not None
        self._running.terminate()
        return self._running.wait(30)

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()


def arguments(folder: Path, port: int, *more: str) -> list[str]:
    return ["--folder", str(folder), "--port", str(port), "--redirect-uri", PAGE_URI, *more]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path / "identity")
    try:
        yield process
    finally:
        process.kill()


async def test_a_process_signs_players_in_without_logging_secrets_and_stops(
    process: Process,
) -> None:
    process.start()
    async with httpx.AsyncClient(trust_env=False) as http:
        player = Player(http, process.url, PAGE_URI)
        code = await player.code("alice")
        issued = (await player.redeem(code)).json()
        await player.redeem(code)
        password = (process.folder / "admin-password").read_text()
        form = (await player.ask(scope=ADMIN)).text
        redirect_parameters(await player.agree(form, "admin", password=password))
    assert (process.folder / "admin-password").stat().st_mode & 0o777 == 0o600
    secret = (process.folder / "game-server-secret").read_text()

    issuer = LocalIssuer.load(process.folder)
    assert (issuer.issuer, process.stop()) == (process.url, 0)
    caller = await verifier_of(issuer).verify(issued["access_token"])
    assert (caller.subject, caller.issuer) == ("alice", process.url)
    log = process.log.read_text()
    assert "player_signed_in" in log
    assert "grant_refused" in log
    hidden = [code, issued["access_token"], secret, password, player.verifier, player.state]
    assert [value for value in hidden if value in log] == []


@pytest.mark.parametrize(
    ("more", "environment", "reason"),
    [
        (["--host", "0.0.0.0"], {}, "has no passwords"),
        (["--redirect-uri", "https://scores.test/"], {}, "this machine only"),
        ([], {"SCOREBOARD_ENVIRONMENT": "production"}, "'production'"),
    ],
)
def test_a_process_does_not_start_with_an_unsafe_setting(
    tmp_path: Path, more: list[str], environment: dict[str, str], reason: str
) -> None:
    refused = run(arguments(tmp_path / "identity", find_free_port(), *more), environment)
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "identity").exists()


def test_a_port_in_use_is_reported_in_one_line(process: Process) -> None:
    process.start()
    refused = run(arguments(process.folder.parent / "other", process.port))
    assert refused.returncode == 1
    assert f"127.0.0.1:{process.port}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def run(words: list[str], environment: dict[str, str] | None = None) -> Any:
    return run_forked("cli.issuer", words, environment or {})
