"""What scoreboard-authz demands of a verified token, and whom a request then counts against."""

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


def judge(gateway: Gateway, jwt: str | None, **changes: Any) -> Outcome:
    """Run authz alone on a token that jwt has verified for the consumer `players`."""
    config = gateway.config("scoreboard-authz", {**CONFIG, **changes})
    return gateway.send(
        [Entry("scoreboard-authz", [(None, config)])], verified_token=jwt, consumer="players"
    )


def assert_unauthenticated(outcome: Outcome) -> None:
    assert (outcome.status, outcome.is_forwarded) == (401, False)
    assert outcome.headers["www-authenticate"] == INVALID
    assert outcome.authenticated == 0
    assert not outcome.errors


def test_a_good_token_is_authenticated_as_its_sub(gateway: Gateway) -> None:
    outcome = judge(gateway, token())
    assert outcome.is_forwarded
    assert outcome.credential == {"id": "alice", "consumer_id": "id-of-players"}
    assert outcome.consumer == {"id": "id-of-players", "username": "players"}


def test_two_subs_are_two_credentials(gateway: Gateway) -> None:
    ids = [judge(gateway, token(sub=sub)).credential for sub in ("alice", "bob")]
    assert [credential["id"] for credential in ids if credential] == ["alice", "bob"]


def test_without_a_token_that_jwt_verified_nothing_passes(gateway: Gateway) -> None:
    outcome = judge(gateway, None)
    assert (outcome.status, outcome.authenticated) == (401, 0)
    assert outcome.headers["www-authenticate"] == 'Bearer realm="scoreboard"'


def test_a_token_without_a_consumer_does_not_pass(gateway: Gateway) -> None:
    config = gateway.config("scoreboard-authz", CONFIG)
    chain = [Entry("scoreboard-authz", [(None, config)])]
    outcome = gateway.send(chain, verified_token=token())
    assert (outcome.status, outcome.authenticated) == (401, 0)


@pytest.mark.parametrize(
    "iss",
    [..., None, "", ISSUER.rstrip("/"), ISSUER + "/", ISSUER.upper(), [ISSUER], {"a": ISSUER}, 7],
)
def test_the_issuer_must_be_equal_to_the_last_slash(gateway: Gateway, iss: object) -> None:
    assert_unauthenticated(judge(gateway, token(iss=iss)))


@pytest.mark.parametrize("aud", [AUDIENCE, [AUDIENCE], ["x", "https://api.example"], [7, AUDIENCE]])
def test_an_audience_is_a_string_or_an_array(gateway: Gateway, aud: object) -> None:
    assert judge(gateway, token(aud=aud)).is_forwarded


@pytest.mark.parametrize(
    "aud",
    [..., None, "", "other", [], ["other"], "scoreboard other", "scoreboards", {"0": AUDIENCE}, 7],
)
def test_a_foreign_audience_is_refused(gateway: Gateway, aud: object) -> None:
    assert_unauthenticated(judge(gateway, token(aud=aud)))


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_times_ahead_are_forgiven_within_the_skew_only(gateway: Gateway, claim: str) -> None:
    for ahead_s, is_good in ((-10, True), (0, True), (30, True), (31, False)):
        outcome = judge(gateway, token(**{claim: NOW + ahead_s}))
        assert outcome.is_forwarded is is_good, ahead_s


@pytest.mark.parametrize("claim", ["nbf", "iat"])
@pytest.mark.parametrize("value", [None, "0", [0], True])
def test_times_that_are_no_numbers_are_refused(gateway: Gateway, claim: str, value: object) -> None:
    assert_unauthenticated(judge(gateway, token(**{claim: value})))


@pytest.mark.parametrize(
    "sub",
    [..., None, "", 7, ["alice"], {"id": "alice"}, True, "a" * 256, "al ice", "al\tice", "a\x00b",
     "alice\n", "álice", "玩家", "\x7f"],
)  # fmt: skip
def test_a_sub_that_cannot_stand_in_a_key_is_refused(gateway: Gateway, sub: object) -> None:
    assert_unauthenticated(judge(gateway, token(sub=sub)))


@pytest.mark.parametrize("sub", ["a", "a" * 255, "auth0|64f1", "user@example.org", "~!*'()"])
def test_subs_of_printable_ascii_pass(gateway: Gateway, sub: str) -> None:
    outcome = judge(gateway, token(sub=sub))
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
def test_a_scope_is_a_word_of_scope_or_scp(gateway: Gateway, granted: dict[str, object]) -> None:
    assert judge(gateway, token(**granted)).is_forwarded


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
def test_anything_but_the_whole_word_is_a_403(gateway: Gateway, granted: dict[str, object]) -> None:
    outcome = judge(gateway, token(**granted))
    assert (outcome.status, outcome.authenticated) == (403, 0)
    assert outcome.headers["www-authenticate"] == (
        'Bearer realm="scoreboard", error="insufficient_scope", scope="update:score"'
    )


def test_a_game_server_counts_against_its_own_consumer(gateway: Gateway) -> None:
    outcome = judge(gateway, token(sub="server-1", scope="update:score:any"))
    assert outcome.is_forwarded
    assert outcome.consumer == {"id": "id-of-game-servers", "username": "game-servers"}
    assert outcome.credential == {"id": "server-1", "consumer_id": "id-of-game-servers"}


def test_the_wider_scope_wins_where_a_token_has_both(gateway: Gateway) -> None:
    outcome = judge(gateway, token(scope="update:score update:score:any"))
    assert outcome.consumer is not None
    assert outcome.consumer["username"] == "game-servers"


def test_where_no_route_trusts_game_servers_they_are_players(gateway: Gateway) -> None:
    granted = token(scope="read:leaderboard update:score:any")
    outcome = judge(
        gateway, granted, scopes=["read:leaderboard"], trusted_scope=None, trusted_consumer=None
    )
    assert outcome.consumer is not None
    assert outcome.consumer["username"] == "players"


def test_a_missing_consumer_of_game_servers_fails_closed(gateway: Gateway) -> None:
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
def test_id_tokens_can_be_kept_out_by_type(gateway: Gateway, typ: object, is_good: bool) -> None:
    jwt = token(header={"alg": "RS256", "kid": "k1", "typ": typ})
    assert judge(gateway, jwt, token_types=["at+jwt"]).is_forwarded is is_good


def test_a_token_that_the_parser_refuses_is_a_401(gateway: Gateway) -> None:
    for jwt in ("x", "a.b.c", "[].[].x"):
        assert_unauthenticated(judge(gateway, jwt))
