"""scoreboard-authz: the checks of a verified token, and the consumer and credential it sets."""

from typing import Any

import pytest

from tests.kong.runtime import AUDIENCE, ISSUER, NOW, Entry, Gateway, Outcome, token

CONFIG: dict[str, Any] = {
    "issuer": ISSUER,
    "audiences": [AUDIENCE, "https://api.example"],
    "scopes": ["update:score", "update:score:any"],
    "trusted_scope": "update:score:any",
    "trusted_consumer": "game-servers",
}
INVALID = 'Bearer realm="scoreboard", error="invalid_token"'


def authorize(gateway: Gateway, jwt: str | None, **changes: Any) -> Outcome:
    """Run only authz, with a token that jwt has verified for the consumer `players`."""
    config = gateway.config("scoreboard-authz", {**CONFIG, **changes})
    return gateway.send(
        [Entry("scoreboard-authz", [(None, config)])], verified_token=jwt, consumer="players"
    )


def assert_unauthenticated(outcome: Outcome) -> None:
    assert (outcome.status, outcome.is_forwarded) == (401, False)
    assert outcome.headers["www-authenticate"] == INVALID
    assert outcome.authenticated == 0
    assert not outcome.errors


def test_a_valid_token_is_authenticated_as_its_sub(gateway: Gateway) -> None:
    outcome = authorize(gateway, token())
    assert outcome.is_forwarded
    assert outcome.credential == {"id": "alice", "consumer_id": "id-of-players"}
    assert outcome.consumer == {"id": "id-of-players", "username": "players"}


def test_each_sub_is_its_own_credential(gateway: Gateway) -> None:
    ids = [authorize(gateway, token(sub=sub)).credential for sub in ("alice", "bob")]
    assert [credential["id"] for credential in ids if credential] == ["alice", "bob"]


def test_a_request_without_a_verified_token_is_refused(gateway: Gateway) -> None:
    outcome = authorize(gateway, None)
    assert (outcome.status, outcome.authenticated) == (401, 0)
    assert outcome.headers["www-authenticate"] == 'Bearer realm="scoreboard"'


def test_a_token_without_a_consumer_is_refused(gateway: Gateway) -> None:
    config = gateway.config("scoreboard-authz", CONFIG)
    chain = [Entry("scoreboard-authz", [(None, config)])]
    outcome = gateway.send(chain, verified_token=token())
    assert (outcome.status, outcome.authenticated) == (401, 0)


@pytest.mark.parametrize(
    "iss",
    [..., None, "", ISSUER.rstrip("/"), ISSUER + "/", ISSUER.upper(), [ISSUER], {"a": ISSUER}, 7],
)
def test_an_issuer_that_differs_in_any_character_is_refused(gateway: Gateway, iss: object) -> None:
    assert_unauthenticated(authorize(gateway, token(iss=iss)))


@pytest.mark.parametrize("aud", [AUDIENCE, [AUDIENCE], ["x", "https://api.example"], [7, AUDIENCE]])
def test_an_audience_can_be_a_string_or_an_array(gateway: Gateway, aud: object) -> None:
    assert authorize(gateway, token(aud=aud)).is_forwarded


@pytest.mark.parametrize(
    "aud",
    [..., None, "", "other", [], ["other"], "scoreboard other", "scoreboards", {"0": AUDIENCE}, 7],
)
def test_another_audience_is_refused(gateway: Gateway, aud: object) -> None:
    assert_unauthenticated(authorize(gateway, token(aud=aud)))


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_times_in_the_future_are_accepted_within_the_clock_skew(
    gateway: Gateway, claim: str
) -> None:
    for ahead_s, is_good in ((-10, True), (0, True), (30, True), (31, False)):
        outcome = authorize(gateway, token(**{claim: NOW + ahead_s}))
        assert outcome.is_forwarded is is_good, ahead_s


@pytest.mark.parametrize("claim", ["nbf", "iat"])
@pytest.mark.parametrize("value", [None, "0", [0], True])
def test_times_that_are_not_numbers_are_refused(
    gateway: Gateway, claim: str, value: object
) -> None:
    assert_unauthenticated(authorize(gateway, token(**{claim: value})))


@pytest.mark.parametrize(
    "sub",
    [..., None, "", 7, ["alice"], {"id": "alice"}, True, "a" * 256, "al ice", "al\tice", "a\x00b",
     "alice\n", "álice", "玩家", "\x7f"],
)  # fmt: skip
def test_an_invalid_sub_is_refused(gateway: Gateway, sub: object) -> None:
    assert_unauthenticated(authorize(gateway, token(sub=sub)))


@pytest.mark.parametrize("sub", ["a", "a" * 255, "auth0|64f1", "user@example.org", "~!*'()"])
def test_subs_of_printable_ascii_are_accepted(gateway: Gateway, sub: str) -> None:
    outcome = authorize(gateway, token(sub=sub))
    assert outcome.credential is not None
    assert outcome.credential["id"] == sub


@pytest.mark.parametrize(
    "granted",
    [
        {"scope": "update:score"},
        {"scope": "openid  update:score\tprofile"},
        {"scope": ["openid", "update:score"]},
        {"scope": ..., "scp": "update:score"},
        {"scope": ..., "scp": ["update:score"]},
        {"scope": None, "scp": ["update:score"]},
        {"scope": "openid", "scp": "update:score"},
    ],
)
def test_scopes_are_read_as_words_from_scope_and_scp(
    gateway: Gateway, granted: dict[str, object]
) -> None:
    assert authorize(gateway, token(**granted)).is_forwarded


@pytest.mark.parametrize(
    "granted",
    [
        {"scope": ...},
        {"scope": None},
        {"scope": ""},
        {"scope": "update:scores"},
        {"scope": "xupdate:score"},
        {"scope": "update:score:anything"},
        {"scope": "update:score,read:leaderboard"},
        {"scope": "UPDATE:SCORE"},
        {"scope": ["openid update:score"]},
        {"scope": [["update:score"], None, 7]},
        {"scope": {"update:score": True}},
        {"scope": "read:leaderboard"},
        {"scope": ..., "permissions": ["update:score"]},
    ],
)
def test_a_token_without_the_exact_scope_gets_403(
    gateway: Gateway, granted: dict[str, object]
) -> None:
    outcome = authorize(gateway, token(**granted))
    assert (outcome.status, outcome.authenticated) == (403, 0)
    assert outcome.headers["www-authenticate"] == (
        'Bearer realm="scoreboard", error="insufficient_scope", scope="update:score"'
    )


def test_a_game_server_has_its_own_consumer(gateway: Gateway) -> None:
    outcome = authorize(gateway, token(sub="server-1", scope="update:score:any"))
    assert outcome.is_forwarded
    assert outcome.consumer == {"id": "id-of-game-servers", "username": "game-servers"}
    assert outcome.credential == {"id": "server-1", "consumer_id": "id-of-game-servers"}


def test_a_token_with_both_scopes_has_the_consumer_of_game_servers(gateway: Gateway) -> None:
    outcome = authorize(gateway, token(scope="update:score update:score:any"))
    assert outcome.consumer is not None
    assert outcome.consumer["username"] == "game-servers"


def test_game_servers_are_players_on_routes_without_a_trusted_scope(gateway: Gateway) -> None:
    granted = token(scope="read:leaderboard update:score:any")
    outcome = authorize(
        gateway, granted, scopes=["read:leaderboard"], trusted_scope=None, trusted_consumer=None
    )
    assert outcome.consumer is not None
    assert outcome.consumer["username"] == "players"


def test_a_missing_consumer_of_game_servers_gets_503(gateway: Gateway) -> None:
    config = gateway.config("scoreboard-authz", CONFIG)
    outcome = gateway.send(
        [Entry("scoreboard-authz", [(None, config)])],
        verified_token=token(scope="update:score:any"),
        consumer="players",
        consumers=["players"],
    )
    assert (outcome.status, outcome.authenticated) == (503, 0)
    assert outcome.errors == ["consumer game-servers cannot be loaded: not found"]


@pytest.mark.parametrize(
    ("typ", "is_good"),
    [("at+jwt", True), ("application/at+jwt", True), ("AT+JWT", True), ("JWT", False),
     (None, False), (7, False), (["at+jwt"], False)],
)  # fmt: skip
def test_tokens_of_another_type_can_be_refused(
    gateway: Gateway, typ: object, is_good: bool
) -> None:
    jwt = token(header={"alg": "RS256", "kid": "k1", "typ": typ})
    assert authorize(gateway, jwt, token_types=["at+jwt"]).is_forwarded is is_good


def test_a_token_that_the_parser_refuses_gets_401(gateway: Gateway) -> None:
    for jwt in ("x", "a.b.c", "[].[].x"):
        assert_unauthenticated(authorize(gateway, jwt))
