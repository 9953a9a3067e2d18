"""scoreboard-intake: which requests it forwards, refuses and changes."""

import json
import re
from collections.abc import Sequence

import pytest

from scoreboard import errors
from scoreboard.http.problems import PROBLEM_TYPES, TYPE_PREFIX
from tests.kong.runtime import (
    PLUGINS,
    ROOT,
    Entry,
    Gateway,
    Headers,
    Outcome,
    bearer,
    token,
)

ORIGIN = "https://play.example"
REST = {"algorithms": ["RS256", "ES256"]}
WS = {**REST, "subprotocol": "scoreboard.v1", "allowed_origins": [ORIGIN, "https://other.example"]}

type_of = "/docs/problems/{}".format


def send(gateway: Gateway, headers: Headers, config: dict[str, object] = REST) -> Outcome:
    """Send a request through intake only; ``config=WS`` is the WebSocket route."""
    checked = gateway.config("scoreboard-intake", config)
    return gateway.send([Entry("scoreboard-intake", [(None, checked)])], headers)


def offer(*protocols: str) -> list[tuple[str, str]]:
    """Return one Sec-WebSocket-Protocol header per argument."""
    return [("Sec-WebSocket-Protocol", line) for line in protocols]


def assert_refused(outcome: Outcome, status: int, code: str) -> None:
    assert (outcome.status, outcome.is_forwarded) == (status, False)
    assert outcome.headers["content-type"] == "application/problem+json"
    assert outcome.problem["type"] == type_of(code)
    assert outcome.problem["status"] == status
    assert outcome.problem["request_id"] == "0123456789abcdef0123456789abcdef"
    assert not outcome.errors


# Authorization ----------------------------------------------------------------------------------


def test_a_request_without_a_token_is_forwarded_unchanged(gateway: Gateway) -> None:
    outcome = send(gateway, [("Accept", "application/json")])
    assert outcome.is_forwarded
    assert outcome.sent == [("Accept", "application/json")]


@pytest.mark.parametrize(
    "form", ["Bearer {}", "bearer {}", "BEARER {}", "bEaReR {}", "Bearer   {}"]
)
def test_a_token_is_forwarded_with_the_same_scheme(gateway: Gateway, form: str) -> None:
    jwt = token()
    outcome = send(gateway, [("authorization", form.format(jwt))])
    assert outcome.is_forwarded
    assert outcome.sent == [("Authorization", f"Bearer {jwt}")]


GOOD = {"alg": "RS256", "kid": "k1"}


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        token(),
        f"Bearer {token()} {token()}",
        f"Bearer {token()}, Bearer {token()}",
        f"Token x Bearer {token()}",
        "Bearer a.b",
        "Bearer a.b.c.d",
        "Bearer ..",
        f"Bearer {token()}=",
        f"Bearer {token(signature='')}",
        f"Bearer {token(signature='not+base64url')}",
        f"Bearer {token(signature='AAAAA')}",  # no text has five characters in base64
        f"Bearer {token(header='[]')}",
        f"Bearer {token(header='5')}",
        f"Bearer {token(header='null')}",
        f"Bearer {token(header='{')}",
        f"Bearer {token(claims='[]')}",
        f"Bearer {token(claims='null')}",
        f"Bearer {token(claims=chr(0xFF))}",
        f"Bearer {token(header={'kid': 'k1'})}",
        f"Bearer {token(header={**GOOD, 'alg': 'none'})}",
        f"Bearer {token(header={**GOOD, 'alg': 'HS256'})}",
        f"Bearer {token(header={**GOOD, 'alg': 'rs256'})}",
        f"Bearer {token(header={**GOOD, 'alg': ['RS256']})}",
        f"Bearer {token(header={**GOOD, 'alg': None})}",
        f"Bearer {token(header={'alg': 'RS256'})}",
        f"Bearer {token(header={**GOOD, 'kid': 7})}",
        f"Bearer {token(header={**GOOD, 'kid': ['k1']})}",
        f"Bearer {token(header={**GOOD, 'kid': {'a': 1}})}",
        f"Bearer {token(header={**GOOD, 'kid': None})}",
        f"Bearer {token(header={**GOOD, 'kid': ''})}",
        f"Bearer {token(header={**GOOD, 'kid': 'k 1'})}",
        f"Bearer {token(header={**GOOD, 'kid': 'k' * 257})}",
        f"Bearer {token(header={**GOOD, 'crit': ['b64'], 'b64': False})}",
        f"Bearer {token(kid='k2')}",
        f"Bearer {token(kid=None)}",
        f"Bearer {token(kid=7)}",
        f"Bearer {token(header={'alg': 'ES256', 'kid': 'e1'}, signature='c2ln' + 'A' * 81)}",
        f"Bearer {token(header={'alg': 'ES256', 'kid': 'e1'}, signature='c2ln' + 'A' * 84)}",
        f"Bearer {token(sub='a' * 4096)}",
    ],
)
def test_a_malformed_token_gets_401_before_jwt(gateway: Gateway, authorization: str) -> None:
    outcome = send(gateway, [("Authorization", authorization)])
    assert_refused(outcome, 401, "unauthenticated")
    challenge = outcome.headers["www-authenticate"]
    assert challenge == 'Bearer realm="scoreboard", error="invalid_token"'


def test_two_authorization_headers_get_401(gateway: Gateway) -> None:
    assert_refused(send(gateway, [bearer(token()), bearer(token())]), 401, "unauthenticated")


def test_arbitrary_bytes_get_401_without_a_lua_error(gateway: Gateway) -> None:
    for raw in ("\xff\xfe\x00", "Bearer \x00.\x00.\x00", "Bearer \xe9.\xe9.\xe9"):
        assert_refused(send(gateway, [("Authorization", raw)]), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("algorithm", "length"),
    [("ES256", 86), ("ES384", 128), ("ES512", 176), ("PS256", 342), ("PS384", 342), ("PS512", 342)],
)
def test_signatures_of_fixed_length_must_have_that_length(
    gateway: Gateway, algorithm: str, length: int
) -> None:
    for size, is_good in ((length - 1, False), (length, True), (length + 1, False)):
        jwt = token(header={"alg": algorithm, "kid": "k"}, signature="A" * size)
        outcome = send(gateway, [bearer(jwt)], {"algorithms": [algorithm]})
        assert outcome.is_forwarded is is_good, size


def test_the_longest_token_and_the_longest_kid_are_accepted(gateway: Gateway) -> None:
    jwt = token(header={"alg": "RS256", "kid": "k" * 256})
    assert send(gateway, [bearer(jwt)], {**REST, "max_token_bytes": len(jwt)}).is_forwarded
    shorter = {**REST, "max_token_bytes": len(jwt) - 1}
    assert_refused(send(gateway, [bearer(jwt)], shorter), 401, "unauthenticated")


def test_a_refusal_explains_the_reason(gateway: Gateway) -> None:
    outcome = send(gateway, [bearer("a.b")])
    assert outcome.problem["detail"] == "The token must have three base64url parts."
    assert fail(gateway, "kong.response.exit(429)").problem["detail"].startswith("Wait as many")
    assert fail(gateway, "kong.response.exit(413)").problem["detail"].startswith("The request body")
    for own, words in ((411, "Content-Length"), (408, "in time"), (501, "transfer coding")):
        assert words in fail(gateway, f"kong.response.exit({own})").problem["detail"]


def test_a_kid_claim_equal_to_the_header_is_accepted(gateway: Gateway) -> None:
    assert send(gateway, [bearer(token(kid="k1"))]).is_forwarded


# Headers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["close, Authorization"],
        ["authorization"],
        ["keep-alive", "X-Kong-Request-Id"],
        ["Upgrade, Sec-WebSocket-Protocol"],
        ["close,,content-length"],
        ["keep-alive authorization"],
    ],
)
def test_connection_cannot_name_end_to_end_headers(gateway: Gateway, lines: Sequence[str]) -> None:
    outcome = send(gateway, [bearer(token()), *[("Connection", line) for line in lines]])
    assert_refused(outcome, 400, "malformed")


@pytest.mark.parametrize(
    "lines",
    [
        ["close"],
        ["Keep-Alive, Upgrade"],
        ["UPGRADE", "TE"],
        ["Upgrade, HTTP2-Settings"],
        ["close, "],
    ],
)
def test_connection_options_are_accepted_in_any_case(
    gateway: Gateway, lines: Sequence[str]
) -> None:
    assert send(gateway, [("Connection", line) for line in lines]).is_forwarded


OFFERS = [
    [("Upgrade", "websocket"), ("Connection", "Upgrade")],
    [("upgrade", "WebSocket"), ("connection", "keep-alive, UPGRADE")],
    [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMA")],
    [("HTTP2-Settings", "AAMA"), ("Upgrade", "websocket")],
    [("Upgrade", "websocket"), ("Upgrade", "h2c"), ("Connection", "Upgrade")],
    [("Connection", "keep-alive"), ("Connection", "Upgrade"), ("Upgrade", "websocket")],
]


@pytest.mark.parametrize("offer_of_upgrade", OFFERS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_upgrades_are_not_forwarded_to_http_services(
    gateway: Gateway, offer_of_upgrade: Headers, method: str
) -> None:
    config = gateway.config("scoreboard-intake", REST)
    chain = [Entry("scoreboard-intake", [(None, config)])]
    outcome = gateway.send(chain, [*offer_of_upgrade, ("Accept", "*/*")], method=method)
    assert outcome.is_forwarded
    assert outcome.variables["upstream_upgrade"] == ""
    assert outcome.variables["upstream_connection"] == "keep-alive"
    assert outcome.sent_values("Upgrade") == outcome.sent_values("HTTP2-Settings") == []


def test_upgrades_are_forwarded_on_the_websocket_route(gateway: Gateway) -> None:
    outcome = send(gateway, [("Upgrade", "websocket"), ("Connection", "Upgrade")], WS)
    assert outcome.is_forwarded
    assert outcome.variables["upstream_upgrade"] == "websocket"
    assert outcome.variables["upstream_connection"] == "keep-alive, Upgrade"


@pytest.mark.parametrize(
    "framing",
    [
        [("Content-Length", "5")],
        [("Content-Length", "0"), ("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "chunked")],
        [("Content-Length", "00")],
    ],
)
def test_a_handshake_with_a_body_gets_400(gateway: Gateway, framing: Headers) -> None:
    upgrade = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
    assert_refused(send(gateway, [*upgrade, *framing], WS), 400, "malformed")
    assert send(gateway, framing, REST).is_forwarded


def test_a_handshake_with_content_length_0_is_accepted(gateway: Gateway) -> None:
    assert send(gateway, [("Content-Length", "0")], WS).is_forwarded


def test_more_than_100_headers_get_400(gateway: Gateway) -> None:
    headers = [(f"X-Header-{i}", "1") for i in range(100)]
    assert send(gateway, headers).is_forwarded
    assert_refused(send(gateway, [*headers, ("Connection", "Authorization")]), 400, "malformed")


def test_headers_with_underscores_and_identity_headers_are_removed(gateway: Gateway) -> None:
    outcome = send(
        gateway,
        [
            ("X_Kong_Request_Id", "forged"),
            ("Sec_WebSocket_Protocol", "bearer.x"),
            ("content_type", "text/plain"),
            ("X-Consumer-Id", "1"),
            ("x-consumer-username", "game-servers"),
            ("X-Credential-Identifier", "admin"),
            ("X-Authenticated-Userid", "admin"),
            ("X-Anonymous-Consumer", "true"),
            ("Content-Type", "application/json"),
            ("If-None-Match", '"1-2"'),
        ],
    )
    assert outcome.is_forwarded
    assert outcome.sent == [("Content-Type", "application/json"), ("If-None-Match", '"1-2"')]


@pytest.mark.parametrize("config", [REST, WS])
@pytest.mark.parametrize(
    "name",
    ["X-Request-Id", "x-request-id", "X-Kong-Request-Id", "X_REQUEST_ID", "x_kong_request_id"],
)
def test_request_ids_of_clients_are_not_forwarded(
    gateway: Gateway, config: dict[str, object], name: str
) -> None:
    outcome = send(gateway, [(name, "forged-1"), (name, "forged-2"), ("Accept", "*/*")], config)
    assert outcome.is_forwarded
    assert outcome.sent == [("Accept", "*/*")]


# The WebSocket route ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offers",
    [
        ["scoreboard.v1, bearer.{}"],
        ["bearer.{},scoreboard.v1"],
        ["scoreboard.v1", "bearer.{}"],
        ["scoreboard.v2 ,  scoreboard.v1 ,  bearer.{}  "],
    ],
)
def test_a_subprotocol_token_is_forwarded_as_authorization(
    gateway: Gateway, offers: list[str]
) -> None:
    jwt = token()
    outcome = send(gateway, [*offer(*[line.format(jwt) for line in offers])], WS)
    assert outcome.is_forwarded
    assert outcome.sent_values("Sec-WebSocket-Protocol") == ["scoreboard.v1"]
    assert outcome.sent_values("Authorization") == [f"Bearer {jwt}"]


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("scoreboard.v1.delta, bearer.{}", "scoreboard.v1.delta"),
        ("bearer.{}, scoreboard.v1.delta, scoreboard.v1", "scoreboard.v1.delta, scoreboard.v1"),
        ("scoreboard.v1,scoreboard.v1.Delta,scoreboard.v1.,bearer.{}", "scoreboard.v1"),
        ("scoreboard.v1, scoreboardXv1.delta, bearer.{}", "scoreboard.v1"),
    ],
)
def test_forms_of_the_subprotocol_are_forwarded_in_their_order(
    gateway: Gateway, line: str, sent: str
) -> None:
    jwt = token()
    outcome = send(gateway, [*offer(line.format(jwt))], WS)
    assert outcome.is_forwarded
    assert outcome.sent_values("Sec-WebSocket-Protocol") == [sent]
    assert outcome.sent_values("Authorization") == [f"Bearer {jwt}"]


def test_subprotocols_without_a_token_are_forwarded_unchanged(gateway: Gateway) -> None:
    outcome = send(gateway, [*offer("scoreboard.v1, chat"), bearer(token())], WS)
    assert outcome.is_forwarded
    assert outcome.sent_values("Sec-WebSocket-Protocol") == ["scoreboard.v1, chat"]


@pytest.mark.parametrize(
    ("offers", "status"),
    [
        (["scoreboard.v1, bearer.{0}, bearer.{0}"], 400),
        (["scoreboard.v1, bearer.{0}", "bearer.{0}"], 400),
        (["bearer.{0}"], 400),
        (["SCOREBOARD.V1, bearer.{0}"], 400),
        (["scoreboard.v2, bearer.{0}"], 400),
        (["scoreboard.v1, Bearer.{0}"], 400),
        (["scoreboard.v1, bearer."], 401),
        (["scoreboard.v1, bearer.eyJub3Q.a"], 401),
    ],
)
def test_a_refused_subprotocol_token_is_removed_from_the_header(
    gateway: Gateway, offers: list[str], status: int
) -> None:
    jwt = token()
    outcome = send(gateway, offer(*[line.format(jwt) for line in offers]), WS)
    assert_refused(outcome, status, "malformed" if status == 400 else "unauthenticated")
    assert outcome.sent_values("Sec-WebSocket-Protocol") == ["scoreboard.v1"]
    assert jwt not in str(outcome.sent)


@pytest.mark.parametrize(
    "invalid",
    [
        [("Connection", "Authorization")],
        [("Origin", "https://evil.example")],
        [(f"X-{i}", "1") for i in range(100)],
    ],
)
def test_the_subprotocol_token_is_removed_if_the_request_is_refused(
    gateway: Gateway, invalid: Headers
) -> None:
    jwt = token()
    outcome = send(gateway, [*offer(f"scoreboard.v1, bearer.{jwt}"), *invalid], WS)
    assert not outcome.is_forwarded
    assert outcome.sent_values("Sec-WebSocket-Protocol") == ["scoreboard.v1"]


def test_a_token_in_subprotocol_and_authorization_gets_400(gateway: Gateway) -> None:
    headers = [*offer(f"scoreboard.v1, bearer.{token()}"), bearer(token())]
    assert_refused(send(gateway, headers, WS), 400, "malformed")


def test_subprotocol_tokens_are_ignored_on_other_routes(gateway: Gateway) -> None:
    outcome = send(gateway, offer(f"scoreboard.v1, bearer.{token()}"), REST)
    assert outcome.sent_values("Authorization") == []


@pytest.mark.parametrize(
    "origins",
    [
        ["https://evil.example"],
        ["null"],
        [""],
        [ORIGIN + "/"],
        [ORIGIN.upper()],
        ["http://play.example"],
        [ORIGIN + ":8443"],
        [ORIGIN + ".evil.example"],
        [ORIGIN, ORIGIN],
    ],
)
def test_another_origin_gets_403_on_the_websocket_route(
    gateway: Gateway, origins: list[str]
) -> None:
    headers = [*offer(f"scoreboard.v1, bearer.{token()}"), *[("Origin", o) for o in origins]]
    assert_refused(send(gateway, headers, WS), 403, "origin")


def test_another_origin_gets_403_with_and_without_a_token(gateway: Gateway) -> None:
    for headers in ([], offer(f"scoreboard.v1, bearer.{token()}")):
        outcome = send(gateway, [*headers, ("Origin", "https://evil.example")], WS)
        assert outcome.problem["title"] == errors.ForeignOrigin.title
        assert "www-authenticate" not in outcome.headers


@pytest.mark.parametrize("origin", [ORIGIN, "https://other.example", None])
def test_a_listed_origin_or_none_is_accepted(gateway: Gateway, origin: str | None) -> None:
    headers = [*offer(f"scoreboard.v1, bearer.{token()}")]
    headers += [("Origin", origin)] if origin else []
    assert send(gateway, headers, WS).is_forwarded


@pytest.mark.parametrize(
    ("origin", "host", "passes"),
    [
        ("https://scores.example", "scores.example", True),
        ("https://scores.example", "Scores.Example", True),
        ("http://scores.example:8080", "scores.example:8080", True),
        ("https://scores.example", "scores.example:443", True),
        ("http://scores.example:80", "scores.example", True),
        ("https://scores.example:8443", "scores.example", False),
        ("http://scores.example", "scores.example:443", False),
        ("https://evil.example", "scores.example", False),
        ("https://scores.example.evil.example", "scores.example", False),
        ("https://scores.example@evil.example", "evil.example", False),
        ("https://scores.example/", "scores.example", False),
        ("ftp://scores.example", "scores.example", False),
        ("null", "null", False),
        ("scores.example", "scores.example", False),
    ],
)
def test_pages_of_the_same_host_are_accepted_in_addition_to_listed_origins(
    gateway: Gateway, origin: str, host: str, *, passes: bool
) -> None:
    outcome = send(gateway, [("Host", host), ("Origin", origin)], WS)
    assert outcome.is_forwarded is passes


def test_origins_are_not_checked_without_a_list(gateway: Gateway) -> None:
    assert send(gateway, [("Origin", "https://evil.example")], REST).is_forwarded


# Error responses --------------------------------------------------------------------------------


class _Failing:
    """A bundled plugin that sends a response, as Kong's plugins do."""

    @staticmethod
    def entry(gateway: Gateway, lua: str, priority: int = 900) -> Entry:
        source = f"bundled.failing = {{ PRIORITY = {priority}, access = function() {lua} end }}"
        gateway.lua.execute(source)
        return Entry("failing", [(None, {})])


def fail(gateway: Gateway, lua: str, method: str = "GET", source: str | None = None) -> Outcome:
    config = gateway.config("scoreboard-intake", REST)
    chain = [Entry("scoreboard-intake", [(None, config)]), _Failing.entry(gateway, lua)]
    return gateway.send(chain, method=method, source=source)


STATUSES = [
    (400, 400, "malformed"),
    (401, 401, "unauthenticated"),
    (402, 400, "malformed"),
    (403, 403, "forbidden"),
    (404, 404, "not-found"),
    (405, 405, "method-not-allowed"),
    (406, 400, "malformed"),
    (408, 400, "malformed"),
    (411, 400, "malformed"),
    (412, 400, "malformed"),
    (413, 413, "body-too-large"),
    (414, 414, "uri-too-long"),
    (415, 415, "unsupported-media"),
    (416, 400, "malformed"),
    (417, 413, "body-too-large"),  # what request-size-limiting answers to Expect: 100-continue
    (421, 400, "malformed"),
    (426, 400, "malformed"),
    (429, 429, "rate-limited"),
    (431, 431, "head-too-large"),
    (494, 431, "head-too-large"),
    (495, 400, "malformed"),
    (496, 400, "malformed"),
    (497, 400, "malformed"),
    (499, 400, "malformed"),
    (500, 503, "unavailable"),
    (501, 400, "malformed"),
    (502, 503, "unavailable"),
    (503, 503, "unavailable"),
    (504, 503, "unavailable"),
    (505, 505, "http-version"),
    (507, 503, "unavailable"),
]


@pytest.mark.parametrize(("own", "answered", "code"), STATUSES)
def test_errors_of_the_gateway_are_problem_documents(
    gateway: Gateway, own: int, answered: int, code: str
) -> None:
    outcome = fail(gateway, f"kong.response.exit({own}, {{ message = 'own' }})")
    assert_refused(outcome, answered, code)
    assert "own" not in outcome.body
    assert outcome.headers["cache-control"] == "no-store"
    assert "content-length" not in outcome.headers
    assert outcome.headers.get("retry-after") == ("1" if answered in {429, 503} else None)
    assert outcome.headers.get("allow") == ("GET, HEAD, POST" if answered == 405 else None)


def test_only_a_503_advises_to_repeat_the_request(gateway: Gateway) -> None:
    for own, answered, _ in STATUSES:
        detail = fail(gateway, f"kong.response.exit({own})").problem["detail"]
        assert ("Repeat" in detail) is (answered == 503), own


@pytest.mark.parametrize("own", [502, 504])
def test_an_update_without_a_response_has_an_unknown_outcome(gateway: Gateway, own: int) -> None:
    outcome = fail(gateway, f"kong.response.exit({own})", method="POST")
    assert_refused(outcome, 503, "outcome-unknown")
    assert "same actionId" in outcome.problem["detail"]
    assert outcome.headers["retry-after"] == "1"
    limiter = fail(gateway, "kong.response.exit(500)", method="POST")
    assert_refused(limiter, 503, "unavailable")  # it did not reach a service


def test_a_429_of_nginx_is_about_connections(gateway: Gateway) -> None:
    # limit_conn of nginx: neither an exit of a plugin nor an answer of a service.
    outcome = fail(gateway, "kong.response.exit(429)", source="error")
    assert_refused(outcome, 429, "too-many-connections")
    assert outcome.headers["retry-after"] == "1"


def test_a_lua_error_gets_503_with_retry_after(gateway: Gateway) -> None:
    outcome = fail(gateway, "error('failed to get usage')")
    assert (outcome.status, outcome.headers["retry-after"]) == (503, "1")
    assert "failed to get usage" not in outcome.body


def test_retry_after_of_the_limiter_is_kept(gateway: Gateway) -> None:
    lua = "kong.response.exit(429, { message = 'x' }, { ['Retry-After'] = '17' })"
    assert fail(gateway, lua).headers["retry-after"] == "17"


def test_the_invalid_challenge_of_jwt_is_replaced(gateway: Gateway) -> None:
    challenge = 'Bearer realm="scoreboard"error="invalid_token"'
    lua = f"kong.response.exit(401, {{}}, {{ ['WWW-Authenticate'] = '{challenge}' }})"
    assert fail(gateway, lua).headers["www-authenticate"] == 'Bearer realm="scoreboard"'


@pytest.mark.parametrize("status", [200, 204, 304, 400, 401, 404, 409, 422, 429, 500, 502, 503])
def test_responses_of_services_are_not_changed(gateway: Gateway, status: int) -> None:
    config = gateway.config("scoreboard-intake", REST)
    service = (status, {"Content-Type": "application/json", "ETag": '"1"'}, "as it was")
    outcome = gateway.send([Entry("scoreboard-intake", [(None, config)])], service=service)
    assert (outcome.status, outcome.body) == (status, "as it was")
    assert outcome.headers == {"content-type": "application/json", "etag": '"1"'}


def test_preflight_responses_of_the_gateway_are_not_changed(gateway: Gateway) -> None:
    config = gateway.config("scoreboard-intake", REST)
    preflight = _Failing.entry(gateway, "kong.response.exit(200)", priority=2000)
    outcome = gateway.send([Entry("scoreboard-intake", [(None, config)]), preflight])
    assert (outcome.status, outcome.body) == (200, "")
    assert outcome.ran == ["failing"]


def test_codes_titles_and_statuses_match_the_services(gateway: Gateway) -> None:
    assert type_of("") == TYPE_PREFIX
    of_services = {kind.code: (kind.title, about.status) for kind, about in PROBLEM_TYPES.items()}
    seen = [fail(gateway, f"kong.response.exit({own})").problem for own, _, _ in STATUSES]
    seen += [
        fail(gateway, "kong.response.exit(502)", method="POST").problem,
        fail(gateway, "kong.response.exit(429)", source="error").problem,
        send(gateway, [("Origin", "null")], WS).problem,
    ]
    for problem in seen:
        code = problem["type"].removeprefix(TYPE_PREFIX)
        assert (problem["title"], problem["status"]) == of_services[code]


def test_every_problem_type_of_the_handler_is_documented() -> None:
    source = (PLUGINS / "scoreboard-intake" / "handler.lua").read_text()
    table = source.partition("local PROBLEMS = {")[2].partition("\n}")[0]
    named = re.findall(r"([a-z-]+)(?:'\])? = \{", table)
    documented = (ROOT / "docs/reference/problems.md").read_text()
    assert len(named) == table.count("= {") > 10
    for code in named:
        assert f"\n## {code}\n" in documented


# Logs -------------------------------------------------------------------------------------------


def test_log_messages_have_route_and_service_as_tables_with_a_name(gateway: Gateway) -> None:
    # Incident: as a string and nil they raised an error in prometheus, which ended the log phase:
    # no metrics, no log line, no passive health report.
    outcome = send(gateway, [bearer(token())])
    assert outcome.logged["route"] == {"name": "scores-update"}
    assert outcome.logged["service"] == {"name": "scoreboard-service"}
    assert outcome.series == "scoreboard-service|scores-update|200"


def test_a_request_without_a_route_is_logged_without_route_and_service(gateway: Gateway) -> None:
    config = gateway.config("scoreboard-intake", REST)
    outcome = gateway.send([Entry("scoreboard-intake", [(None, config)])], route=None)
    assert {"route", "service"}.isdisjoint(outcome.logged)
    assert outcome.series is None


def test_log_messages_have_no_request_headers(gateway: Gateway) -> None:
    outcome = send(gateway, [bearer(token())])
    assert "headers" not in outcome.logged["request"]
    assert "tries" not in outcome.logged
    assert outcome.logged["request"]["id"] == "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("query", ["jwt={}", "a=1&access_token={}", "{}", "code=short&limit=10"])
def test_log_messages_have_no_query(gateway: Gateway, query: str) -> None:
    config = gateway.config("scoreboard-intake", REST)
    chain = [Entry("scoreboard-intake", [(None, config)])]
    outcome = gateway.send(chain, query=query.format(token()), path="/ws/scoreboard")
    assert outcome.logged["request"]["uri"] == "/ws/scoreboard"
    assert {"url", "querystring"}.isdisjoint(outcome.logged["request"])
    assert "upstream_uri" not in outcome.logged
    assert query.format(token()) not in json.dumps(outcome.logged)
