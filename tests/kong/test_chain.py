"""The rendered plugins together, in the order of their PRIORITY, with the fake of fake_pdk.lua.

Routes come from the rendered configuration; jwt, size limit and rate limit are fakes, so these
tests check the chain and not Kong's plugins.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import msgspec
import pytest
import yaml

from cli.gateway.config import GatewayOptions, render
from cli.gateway.keys import KeyRow
from scoreboard.runtime.resources import kong_path
from tests.kong.runtime import (
    ISSUER,
    NOW,
    Entry,
    Gateway,
    Headers,
    Outcome,
    bearer,
    our_plugins,
    token,
)

OPTIONS = GatewayOptions(
    issuer=ISSUER,
    audiences=("scoreboard",),
    redis_url="redis://kong@valkey-counters:6379/0",
    origins=("https://play.example",),
    admin_targets=("admin:8000",),
    trusted_updates_per_minute=25,
)
FAKES = {"jwt", "rate-limiting", "request-size-limiting"}
READER = "read:leaderboard"

Send = Callable[..., Outcome]


def chain_of(gateway: Gateway, document: Mapping[str, Any], route: str) -> list[Entry]:
    """Return a route's plugins with their configurations in Kong's order, most specific first."""
    nested = next(r for s in document["services"] for r in s["routes"] if r["name"] == route)
    found: dict[str, list[tuple[int, str | None, dict[str, Any]]]] = {}
    for plugin in nested["plugins"]:
        found.setdefault(plugin["name"], []).append((1, None, plugin["config"]))
    for plugin in document["plugins"]:
        if plugin.get("route", route) == route:
            consumer = plugin.get("consumer")
            place = (2 if "route" in plugin else 3) - (2 if consumer else 0)
            found.setdefault(plugin["name"], []).append((place, consumer, plugin["config"]))
    entries = []
    for name, candidates in found.items():
        is_ours = name in our_plugins()
        if is_ours or name in FAKES:
            ordered = sorted(candidates, key=lambda candidate: candidate[0])
            entries.append(
                Entry(
                    name,
                    [(who, gateway.config(name, c) if is_ours else c) for _, who, c in ordered],
                )
            )
    return entries


@cache
def rendered(*, is_public: bool) -> dict[str, Any]:
    rows = (KeyRow("k1", "RS256", "PEM"), KeyRow("e1", "ES256", "PEM"))
    options = msgspec.structs.replace(OPTIONS, is_public=is_public)
    return yaml.safe_load(render((kong_path() / "kong.yml").read_text(), rows, options))


def sender(gateway: Gateway, *, is_public: bool = False) -> Send:
    document = rendered(is_public=is_public)

    def send(headers: Headers, route: str = "scores-update", **given: Any) -> Outcome:
        return gateway.send(chain_of(gateway, document, route), headers, route=route, **given)

    return send


@pytest.fixture
def send(gateway: Gateway) -> Send:
    return sender(gateway)


def test_the_plugins_run_in_the_documented_order(send: Send) -> None:
    outcome = send([bearer(token())])
    assert outcome.ran == [
        "scoreboard-intake",
        "jwt",
        "scoreboard-authz",
        "request-size-limiting",
        "rate-limiting",
    ]
    assert outcome.is_forwarded


def test_the_eleventh_update_in_a_minute_gets_429(send: Send) -> None:
    assert all(send([bearer(token())]).is_forwarded for _ in range(10))
    outcome = send([bearer(token())])
    assert (outcome.status, outcome.headers["retry-after"]) == (429, "42")
    assert outcome.problem["type"] == "/docs/problems/rate-limited"


def test_each_user_of_an_issuer_has_its_own_limit(send: Send) -> None:
    for _ in range(10):
        send([bearer(token(sub="alice"))])
    assert send([bearer(token(sub="alice"))]).status == 429
    assert send([bearer(token(sub="bob"))]).is_forwarded


def test_tokens_with_other_keys_share_the_limit_of_their_user(send: Send) -> None:
    for number in range(10):
        send([bearer(token(exp=NOW + 100 + number))])
    other = token(header={"alg": "ES256", "kid": "e1"}, exp=NOW + 50)
    assert send([bearer(other)]).status == 429


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([bearer("not.a.token")], 401),
        ([bearer(token(signature="Zm9yZ2Vk"))], 401),
        ([bearer(token(exp=NOW))], 401),
        ([bearer(token(header={"alg": "RS256", "kid": "unknown"}))], 401),
        ([bearer(token(header={"alg": "ES256", "kid": "k1"}))], 401),
        ([bearer(token(iss="https://other.example/"))], 401),
        ([bearer(token(aud="other"))], 401),
        ([bearer(token(scope=READER))], 403),
        ([bearer(token()), ("Connection", "Authorization")], 400),
    ],
)
def test_a_request_refused_before_the_limit_is_not_counted(
    send: Send, headers: Headers, status: int
) -> None:
    for _ in range(11):
        outcome = send(headers)
        assert (outcome.status, outcome.is_forwarded) == (status, False)
        assert outcome.headers["content-type"] == "application/problem+json"
        assert "rate-limiting" not in outcome.ran
    assert send([bearer(token())]).is_forwarded


def test_a_body_that_is_too_large_is_not_counted(send: Send) -> None:
    for extra, _ in ((("Accept", "*/*"), 413), (("Expect", "100-continue"), 417)):
        outcome = send([bearer(token()), extra], body="x" * 5000)
        assert outcome.status == 413
        assert outcome.problem["type"] == "/docs/problems/body-too-large"
        assert "rate-limiting" not in outcome.ran


def test_a_request_refused_by_a_service_is_counted(send: Send) -> None:
    for _ in range(10):
        assert send([bearer(token())], service=(403, {}, "{}")).status == 403
    assert send([bearer(token())]).status == 429


def test_each_game_server_has_its_own_limit(send: Send) -> None:
    def update(server: str) -> Outcome:
        return send([bearer(token(sub=server, scope="update:score:any"))])

    assert all(update("server-1").is_forwarded for _ in range(25))
    assert update("server-1").status == 429
    assert update("server-2").is_forwarded


def test_a_player_cannot_get_the_limit_of_game_servers_with_a_header(send: Send) -> None:
    spoofed = [
        bearer(token()),
        ("X-Consumer-Username", "game-servers"),
        ("X-Credential-Identifier", "bob"),
        ("X_Consumer_Username", "game-servers"),
    ]
    for _ in range(10):
        assert send(spoofed).is_forwarded
    outcome = send(spoofed)
    assert outcome.status == 429
    assert [name for name, _ in outcome.sent] == ["Authorization"]


def test_updates_get_503_while_the_limiter_fails(send: Send, gateway: Gateway) -> None:
    gateway.lua.execute(
        "bundled['rate-limiting'].access = function() error('failed to get usage') end"
    )
    outcome = send([bearer(token())])
    assert (outcome.status, outcome.is_forwarded) == (503, False)
    assert outcome.headers["retry-after"] == "1"


def test_a_viewer_can_send_its_token_as_a_subprotocol(send: Send) -> None:
    headers = [
        ("Sec-WebSocket-Protocol", f"scoreboard.v1, bearer.{token(scope=READER)}"),
        ("Connection", "keep-alive, Upgrade"),
        ("Origin", "https://play.example"),
    ]
    outcome = send(headers, "ws-scoreboard")
    assert outcome.is_forwarded
    assert outcome.sent_values("Sec-WebSocket-Protocol") == ["scoreboard.v1"]
    assert outcome.sent_values("Authorization") == [f"Bearer {token(scope=READER)}"]
    refused = send([*headers[:2], ("Origin", "https://evil.example")], "ws-scoreboard")
    assert refused.status == 403


def test_the_origin_of_server_sent_events_is_checked(send: Send) -> None:
    headers = [bearer(token(scope=READER))]
    assert send([*headers, ("Origin", "https://play.example")], "scores-stream").is_forwarded
    assert send([*headers, ("Origin", "null")], "scores-stream").status == 403


def test_a_private_board_requires_a_token_on_every_route(send: Send) -> None:
    for route in ("scores-leaderboard", "scores-users", "scores-stream", "ws-scoreboard"):
        assert send([], route).status == 401, route
        assert send([bearer(token(scope="update:score"))], route).status == 403, route
        assert send([bearer(token(scope=READER))], route).is_forwarded, route


def test_a_public_board_requires_no_token_but_refuses_invalid_requests(gateway: Gateway) -> None:
    send = sender(gateway, is_public=True)
    for route in ("scores-leaderboard", "scores-stream", "ws-scoreboard"):
        assert send([], route).is_forwarded, route
        assert send([bearer("x")], route).status == 401, route
        assert send([("Connection", "Host")], route).status == 400, route
    assert send([], "scores-users").status == 401
    assert send([], "scores-update").status == 401


def test_administrators_need_a_scope_that_no_other_scope_includes(gateway: Gateway) -> None:
    send = sender(gateway, is_public=True)
    others = "update:score update:score:any read:leaderboard admin admin:score"
    assert send([], "admin").status == 401
    refused = send([bearer(token(scope=others))], "admin")
    assert (refused.status, refused.is_forwarded) == (403, False)
    assert 'scope="admin:scores"' in refused.headers["www-authenticate"]
    assert send([bearer(token(scope="admin:scores"))], "admin").is_forwarded
    assert send([bearer(token(scope="admin:scores"))]).status == 403


def test_a_body_of_an_administrator_is_limited_and_so_are_the_requests(send: Send) -> None:
    headers = [bearer(token(scope="admin:scores"))]
    assert send(headers, "admin", body="x" * 17_000).status == 413
    assert all(send(headers, "admin").is_forwarded for _ in range(240))
    assert send(headers, "admin").status == 429


@pytest.mark.parametrize("route", ["page", "admin-page"])
def test_the_page_requires_no_token(send: Send, route: str) -> None:
    outcome = send([], route)
    assert outcome.is_forwarded
    assert outcome.ran == ["scoreboard-intake", "rate-limiting"]
