"""Kinds of actions that need a scope or a proof of a game server, over HTTP."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from scoreboard.model import Board, Layout, Rules
from scoreboard.security import key_set
from scoreboard.security.proofs import PROOF_BYTES_MAX
from scoreboard.security.signed_token import PROOF_TYPE
from scoreboard.store.keys import ACTIONS
from tests.integration.test_api_scores import problem, ranking
from tests.support.clients.issuer import serving_keys
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import KeyPair
from tests.support.servers.api import UPDATE_PATH, ApiClient, StartApi, list_boards

Prove = Callable[..., str]
NOW_S = int(time.time())


def make_key(kid: str, algorithm: str) -> KeyPair:
    match algorithm:
        case "ES256":
            private: Any = ec.generate_private_key(ec.SECP256R1())
        case "RS256":
            private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case _:
            private = ed25519.Ed25519PrivateKey.generate()
    return KeyPair(kid=kid, algorithm=algorithm, private=private)


KEYS = {name: make_key(f"arena-{name}", name) for name in ("ES256", "RS256", "EdDSA")}
ARENA = KEYS["ES256"]


def prove(
    sub: str = "alice",
    action: str = "raid:1",
    points: int = 70,
    *,
    key: KeyPair = ARENA,
    headers: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Sign a proof; a claim or header that is None is left out."""
    values = {"sub": sub, "actionId": action, "points": points, "exp": int(time.time()) + 60}
    values |= claims
    head = {"kid": key.kid, "typ": PROOF_TYPE} | (headers or {})
    if head["kid"] is None:
        del head["kid"]
    return jwt.encode(
        {name: value for name, value in values.items() if value is not None},
        key.private,
        algorithm=key.algorithm,
        headers=head,
    )


def write_keys(path: Path, *keys: KeyPair) -> None:
    path.write_text(json.dumps({"keys": [key.jwk for key in keys]}))


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "proof-jwks.json"
    write_keys(path, *KEYS.values())
    return path


@pytest.fixture
def catalogue(redis_url: str) -> Callable[..., None]:
    def write(**rules: dict[str, Any]) -> None:
        with redis.Redis.from_url(redis_url) as client:
            for kind, value in rules.items():
                client.hset(ACTIONS, mapping={kind: 50, f"{kind}:rules": json.dumps(value)})

    return write


@pytest.fixture
async def client(start_api: StartApi, catalogue: Any, keys_file: Path) -> ApiClient:
    catalogue(raid={"proof": True})
    return await start_api(proof_jwks_file=keys_file, open=(Board(), Board("weekly")),
                           boards="main,weekly")  # fmt: skip


async def refused(client: ApiClient, proof: str, detail: str = "", **more: Any) -> None:
    """Send an update with a proof, which must be refused without a trace."""
    before = await ranking(client)
    answer = problem(
        await client.update(action="raid:1", proof=proof, **more), 403, "proof-invalid"
    )
    assert detail in answer["detail"]
    assert proof[-20:] not in json.dumps(answer)
    assert await ranking(client) == before


async def test_a_kind_that_needs_a_proof_counts_only_with_one(client: ApiClient) -> None:
    problem(await client.update(action="raid:1"), 403, "proof-required")
    problem(await client.update(action="raid:1", proof=""), 403, "proof-invalid")
    assert await ranking(client) == []
    first = await client.update(action="raid:1", proof=prove())
    assert first.json() == {"success": True, "newScore": 70, "replayed": False}
    assert (await client.update(action="win:1")).json()["newScore"] == 80


@pytest.mark.parametrize("algorithm", list(KEYS))
async def test_proofs_of_each_algorithm_are_accepted(client: ApiClient, algorithm: str) -> None:
    proof = prove(key=KEYS[algorithm])
    for replayed in (False, True):  # the second one is in the cache
        answer = await client.update(action="raid:1", proof=proof)
        assert answer.json() == {"success": True, "newScore": 70, "replayed": replayed}


def confused(public: Any) -> str:
    """Sign with the public key of the game server as the shared secret."""
    import base64
    import hashlib
    import hmac

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = prove().split(".")[1]
    signed = f"{part({'alg': 'HS256', 'kid': ARENA.kid, 'typ': PROOF_TYPE})}.{claims}"
    tag = hmac.new(pem, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(tag).rstrip(b'=').decode()}"


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "another user": (lambda: prove("bob"), "another user"),
    "another action": (lambda: prove(action="raid:2"), "another action"),
    "expired": (lambda: prove(exp=NOW_S - 120), "expired"),
    "expires in a day": (lambda: prove(exp=NOW_S + 86_400), "too far in the future"),
    "expires in 11 minutes": (lambda: prove(exp=int(time.time()) + 660), "too far"),
    "never expires": (lambda: prove(exp=None), "exp: exp is missing"),
    "exp is text": (lambda: prove(exp="2999-01-01"), "exp: exp must be a number"),
    "exp is huge": (lambda: prove(exp=10**300), "too far in the future"),
    "not yet valid": (lambda: prove(nbf=int(time.time()) + 600), "not valid yet"),
    "issued later": (lambda: prove(iat=int(time.time()) + 600), "not valid yet"),
    "another audience": (lambda: prove(aud="another"), "audience"),
    "no user": (lambda: prove(sub=None), "exp: sub is missing"),
    "no action": (lambda: prove(actionId=None), "exp: actionId is missing"),
    "no points": (lambda: prove(points=None), "exp: points is missing"),
    "a user of another form": (lambda: prove("a b"), "sub must be 1 to 128 characters of A-Z"),
    "points are half": (lambda: prove(points=20.5), "points must be an integer"),
    "points are text": (lambda: prove(points="70"), "exp: points must be a number"),
    "points are true": (lambda: prove(points=True), "exp: points must be a number"),
    "points beyond all boards": (
        lambda: prove(points=2**31),
        "exp: points must be at most 2147483647",
    ),
    "another board": (lambda: prove(board="weekly"), "board"),
    "other boards": (lambda: prove(boards=["weekly", "golf"]), "board"),
    "no boards": (lambda: prove(boards=[]), "exp: boards must not be empty"),
    "board and boards": (
        lambda: prove(board="main", boards=["main"]),
        "name board or boards, not both",
    ),
    "another key": (lambda: prove(key=make_key(ARENA.kid, "ES256")), "signature"),
    "unknown kid": (lambda: prove(headers={"kid": "who"}), "kid"),
    "no kid": (lambda: prove(headers={"kid": None}), "kid"),
    "kid of a key of another algorithm": (
        lambda: prove(headers={"kid": KEYS["RS256"].kid}),
        "signed with",
    ),
    "typ of a token": (lambda: prove(headers={"typ": "at+jwt"}), "typ"),
    "typ JWT": (lambda: prove(headers={"typ": "JWT"}), "typ"),
    "without a typ": (lambda: prove(headers={"typ": None}), "typ"),
    "alg none": (
        lambda: jwt.encode({"sub": "alice"}, None, algorithm="none", headers={"kid": ARENA.kid}),
        "signed with",
    ),
    "public key as secret": (lambda: confused(ARENA.private.public_key()), "signed with"),
    "truncated": (lambda: prove()[:-10], "signature"),
    "without a signature": (lambda: prove().rpartition(".")[0], "compact form"),
    "garbage": (lambda: "not.a.proof", "compact form"),
    "not ASCII": (lambda: "é.é.é", "compact form"),
    "10 KB": (lambda: prove(filler="x" * 10_000), f"{PROOF_BYTES_MAX} bytes"),
}


@pytest.mark.parametrize("name", list(BAD))
async def test_a_proof_that_is_not_of_this_action_is_refused(client: ApiClient, name: str) -> None:
    make, detail = BAD[name]
    await refused(client, make(), detail)
    assert (await client.update(action="raid:1", proof=prove())).status_code == 200


async def test_a_cached_proof_is_of_its_action_only(client: ApiClient) -> None:
    proof = prove()
    assert (await client.update(action="raid:1", proof=proof)).status_code == 200
    for user, action in (("bob", "raid:1"), ("alice", "raid:2")):
        answer = await client.update(user, action, proof=proof)
        problem(answer, 403, "proof-invalid")
    assert await ranking(client) == [(1, "alice", 70)]


async def test_points_of_a_proof_may_be_a_whole_float(client: ApiClient) -> None:
    answer = await client.update(action="raid:1", proof=prove(points=20.0))
    assert answer.json()["newScore"] == 20


async def test_stated_points_must_be_those_of_the_proof(client: ApiClient) -> None:
    await refused(client, prove(), "other points", points=71)
    answer = await client.update(action="raid:1", proof=prove(), points=70)
    assert answer.json()["newScore"] == 70
    problem(await client.update(action="win:1", points=5), 403, "forbidden")


@pytest.mark.parametrize("points", [0, -5, 1_000_001])
async def test_points_of_a_proof_must_be_within_the_rules_of_the_board(
    client: ApiClient, points: int
) -> None:
    answer = await client.update(action="raid:1", proof=prove(points=points))
    problem(answer, 422, "invalid")
    assert await ranking(client) == []


async def test_a_proof_states_the_value_on_a_board_with_values(
    start_api: StartApi, redis_url: str, catalogue: Any, keys_file: Path
) -> None:
    catalogue(lap={"proof": True, "boards": ["laps"]})
    laps = Board("laps", Layout(rules=Rules("best", "lowest", points="stated")))
    await list_boards(redis_url, Board(), laps)
    client = await start_api(proof_jwks_file=keys_file, open=(Board(), laps))
    problem(await client.update(action="lap:1", points=5), 403, "proof-required")
    for action, value, score in (("lap:1", 71_250, 71_250), ("lap:2", 69_900, 69_900)):
        proof = prove(action=action, points=value)
        assert (await client.update(action=action, proof=proof)).json()["newScore"] == score


async def test_a_new_proof_of_the_same_action_is_a_replay(client: ApiClient) -> None:
    assert (await client.update(action="raid:1", proof=prove())).json()["newScore"] == 70
    again = await client.update(action="raid:1", proof=prove(exp=int(time.time()) + 90))
    assert again.json() == {"success": True, "newScore": 70, "replayed": True}
    other = await client.update(action="raid:1", proof=prove(points=80))
    problem(other, 409, "action-conflict")
    assert await ranking(client) == [(1, "alice", 70)]


async def test_a_proof_counts_on_the_boards_that_it_names(client: ApiClient) -> None:
    """Otherwise a player could use one proof on every board of the system."""
    await refused(client, prove(), "board", board="weekly")
    for claims in ({"board": "weekly"}, {"boards": ["main", "weekly"]}):
        answer = await client.update(action="raid:1", proof=prove(**claims), board="weekly")
        assert answer.status_code == 200
    named = await client.update(action="raid:1", proof=prove(boards=["main", "weekly"]))
    assert named.json() == {"success": True, "newScore": 70, "replayed": False}


async def test_a_kind_counts_on_its_board(
    start_api: StartApi, catalogue: Any, keys_file: Path
) -> None:
    catalogue(raid={"proof": True, "boards": ["weekly"]}, win={"boards": ["weekly"]})
    client = await start_api(proof_jwks_file=keys_file, open=(Board(), Board("weekly")),
                             boards="main,weekly")  # fmt: skip
    await client.update(action="win:1")
    await client.update(action="win:1", board="main")
    await client.update(action="raid:1", proof=prove())
    assert await ranking(client, board="weekly") == [(1, "alice", 120)]
    assert await ranking(client, board="main") == [(1, "alice", 50)]


@pytest.mark.parametrize("direct", [True, False])
async def test_a_kind_counts_on_several_boards(
    start_api: StartApi, catalogue: Any, keys_file: Path, direct: bool
) -> None:
    catalogue(raid={"proof": True, "boards": ["weekly", "main"]})
    client = await start_api(proof_jwks_file=keys_file, open=(Board(), Board("weekly")),
                             boards="main,weekly", direct=direct)  # fmt: skip
    problem(await client.update(action="raid:1"), 403, "proof-required")
    await client.update("alice", "win:1")
    for replayed in (False, True):
        answer = await client.update(action="raid:1", proof=prove())
        assert answer.json() == {
            "success": True,
            "newScore": 70,
            "replayed": replayed,
            "scores": {
                "weekly": {"score": 70, "replayed": replayed},
                "main": {"score": 80, "replayed": replayed},
            },
        }
    named = await client.update(action="raid:1", proof=prove(), boards=["main"])
    assert named.json()["scores"] == {"main": {"score": 80, "replayed": True}}
    problem(await client.update(action="raid:1", proof=prove(board="main")), 403, "proof-invalid")
    both = await client.update(action="raid:1", proof=prove(), boards=["main"], board="main")
    problem(both, 422, "invalid")


async def test_items_of_a_bulk_request_have_the_rules_of_their_kinds(
    start_api: StartApi, catalogue: Any, keys_file: Path
) -> None:
    catalogue(
        raid={"proof": True}, boss={"scope": "scores:boss"}, duel={"boards": ["weekly", "main"]}
    )
    client = await start_api(proof_jwks_file=keys_file, open=(Board(), Board("weekly")),
                             boards="main,weekly")  # fmt: skip
    updates = [
        {"userId": "alice", "actionId": "raid:1"},
        {"userId": "alice", "actionId": "raid:2", "proof": prove(action="raid:2")},
        {"userId": "alice", "actionId": "raid:3", "proof": prove(action="raid:2")},
        {"userId": "alice", "actionId": "boss:1", "points": 5},
        {"userId": "bob", "actionId": "duel:1"},
    ]
    answer = await client.post(
        "/api/scores/updates",
        json={"updates": updates},
        headers=client.bearer("arena", "update:score:any"),
    )
    counted, proved, wrong, forbidden, duel = answer.json()["results"]
    assert (counted["newScore"], proved["newScore"]) == (50, 120)
    assert wrong["problem"]["type"] == "/docs/problems/proof-invalid"
    assert forbidden["problem"]["type"] == "/docs/problems/forbidden"
    assert duel["scores"].keys() == {"weekly", "main"}
    assert await ranking(client, board="weekly") == [(1, "bob", 50)]
    assert await ranking(client) == [(1, "alice", 120), (2, "bob", 50)]


async def test_a_game_server_needs_no_proof(client: ApiClient) -> None:
    headers = client.bearer("arena", "update:score:any")
    assert (await client.update("bob", "raid:1", headers=headers, points=9)).json()["newScore"] == 9
    assert (await client.update("bob", "raid:2", headers=headers)).json()["newScore"] == 59
    bad = await client.update("bob", "raid:3", headers=headers, proof=prove("carol"))
    problem(bad, 403, "proof-invalid")


async def test_a_proof_sets_the_points_of_a_kind_that_needs_none(client: ApiClient) -> None:
    proof = prove(action="win:1", points=33)
    assert (await client.update(action="win:1", proof=proof)).json()["newScore"] == 33


async def test_a_disabled_kind_is_refused_even_with_a_proof(
    client: ApiClient, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as server:
        server.hset(ACTIONS, mapping={"raid": 0})
    await client.api._catalogue.load()
    answer = await client.update(action="raid:1", proof=prove())
    problem(answer, 422, "unknown-kind")


async def test_a_token_is_no_proof_and_a_proof_no_token(
    start_api: StartApi, catalogue: Any, jwks_file: Path, rsa_key: KeyPair
) -> None:
    """Even if one key signs both."""
    catalogue(raid={"proof": True})
    client = await start_api(proof_jwks_file=jwks_file)
    claims = {"actionId": "raid:1", "points": 5, "exp": int(time.time()) + 60}
    await refused(client, client.make_token("alice", "update:score", **claims), "typ")
    for typ in (PROOF_TYPE, PROOF_TYPE.upper(), f"application/{PROOF_TYPE}"):
        token = client.make_token("alice", "update:score", headers={"typ": typ}, **claims)
        answer = await client.update(headers={"Authorization": f"Bearer {token}"})
        problem(answer, 401, "unauthenticated")
        proof = prove(key=rsa_key, headers={"typ": typ})
        assert (await client.update(action="raid:1", proof=proof)).status_code == 200
    assert await ranking(client) == [(1, "alice", 70)]


async def test_a_service_without_keys_accepts_no_proofs(
    start_api: StartApi, catalogue: Any
) -> None:
    catalogue(raid={"proof": True})
    client = await start_api()
    problem(await client.update(action="raid:1"), 403, "proof-required")
    await refused(client, prove(), "accepts no proofs")


async def test_keys_are_rotated_while_the_api_runs(
    client: ApiClient, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set.FileSource, "check_s", 0.05)
    monkeypatch.setattr(key_set.FileSource, "forced_check_s", 0.05)
    old = prove()
    assert (await client.update(action="raid:1", proof=old)).status_code == 200
    new = make_key("arena-2", "ES256")

    write_keys(keys_file, ARENA, new)
    assert (await client.update(action="raid:1", proof=prove(key=new))).status_code == 200
    assert (await client.update(action="raid:1", proof=old)).status_code == 200

    write_keys(keys_file, new)

    async def is_gone() -> bool:  # although it was cached
        return (await client.update(action="raid:1", proof=old)).status_code == 403

    await eventually_async(is_gone)
    assert (await client.update(action="raid:1", proof=prove(key=new))).status_code == 200


async def test_unreachable_keys_count_nothing(
    start_api: StartApi, catalogue: Any, redis_url: str
) -> None:
    catalogue(raid={"proof": True})
    async with serving_keys({"keys": [ARENA.jwk]}) as keys:
        keys.status = "500 Internal Server Error"
        client = await start_api(proof_jwks_url=keys.url)
        answer = await client.update(action="raid:1", proof=prove())
        assert "proofs" in problem(answer, 503, "keys-unavailable")["detail"]
        assert answer.headers["retry-after"]
        assert await ranking(client) == []
        assert (await client.update(action="win:1")).json()["newScore"] == 10


async def test_one_unknown_kid_after_the_other_causes_few_reads(
    start_api: StartApi, catalogue: Any
) -> None:
    catalogue(raid={"proof": True})
    async with serving_keys({"keys": [ARENA.jwk]}) as keys:
        client = await start_api(proof_jwks_url=keys.url)
        assert (await client.update(action="raid:1", proof=prove())).status_code == 200
        for number in range(10):
            await client.update(action="raid:1", proof=prove(headers={"kid": f"who-{number}"}))
        assert keys.requests <= 2


async def test_a_kind_can_need_a_scope(client: ApiClient, catalogue: Any) -> None:
    catalogue(boss={"scope": "scores:raid"})
    await client.api._catalogue.load()
    answer = await client.update(action="boss:1")
    problem(answer, 403, "forbidden")
    assert 'scope="scores:raid"' in answer.headers["www-authenticate"]
    for scope in ("update:score scores:raids", "update:score scores"):
        headers = client.bearer("alice", scope)
        problem(await client.update(action="boss:1", headers=headers), 403, "forbidden")
    headers = client.bearer("alice", "update:score scores:raid")
    assert (await client.update(action="boss:1", headers=headers)).json()["newScore"] == 50
    problem(
        await client.update(action="boss:2", headers=client.bearer("alice", "scores:raid")),
        403,
        "forbidden",
    )
    server = client.bearer("arena", "update:score:any")
    problem(await client.update("bob", "boss:1", headers=server, points=5), 403, "forbidden")
    server = client.bearer("arena", "update:score:any scores:raid")
    assert (await client.update("bob", "boss:1", headers=server, points=5)).status_code == 200


async def test_proofs_are_not_logged(
    client: ApiClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    good, bad = prove(), prove("bob")
    assert (await client.update(action="raid:1", proof=good)).status_code == 200
    assert (await client.update(action="raid:1", proof=bad)).status_code == 403
    assert (await client.update(action="raid:1", proof=[bad])).status_code == 422
    out, err = capfd.readouterr()
    for proof in (good, bad):
        assert proof.rpartition(".")[2] not in caplog.text + out + err


@pytest.mark.parametrize("direct", [True, False])
async def test_both_handlers_answer_alike(
    start_api: StartApi, catalogue: Any, keys_file: Path, direct: bool
) -> None:
    catalogue(raid={"proof": True})
    client = await start_api(proof_jwks_file=keys_file, direct=direct)
    problem(await client.update(action="raid:1"), 403, "proof-required")
    await refused(client, prove("bob"), "another user")
    problem(await client.update(action="raid:1", proof=7), 422, "invalid")
    assert (await client.update(action="raid:1", proof=prove())).json()["newScore"] == 70


async def test_many_updates_with_one_proof_count_once(client: ApiClient) -> None:
    proof = prove()
    answers = await asyncio.gather(
        *(client.update(action="raid:1", proof=proof) for _ in range(20))
    )
    assert [answer.status_code for answer in answers] == [200] * 20
    assert sum(not answer.json()["replayed"] for answer in answers) == 1
    assert await ranking(client) == [(1, "alice", 70)]


async def test_the_body_of_an_update_with_the_longest_ids_and_a_proof_fits_the_gateway(
    client: ApiClient,
) -> None:
    user, action = "u" * 128, "raid:" + "a" * 123
    proof = prove(user, action, key=KEYS["RS256"], aud="scoreboard", boards=["main", "weekly"])
    answer = await client.update(user, action, proof=proof)
    assert answer.status_code == 200
    assert UPDATE_PATH in str(answer.request.url)
    assert len(answer.request.content) < 4096
