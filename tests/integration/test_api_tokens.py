"""Refusals of tokens over HTTP; and key sets that are fetched from an issuer's URL."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from scoreboard.errors import KeysUnavailable, Unauthenticated
from scoreboard.runtime.settings import Settings, load
from scoreboard.security import key_set
from scoreboard.security.tokens import Verifier
from tests.support.clients.issuer import serving_keys
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import ISSUER, KeyPair, MakeToken
from tests.support.servers.api import LEADERBOARD_PATH, ApiClient, StartApi

Forge = Callable[[MakeToken, KeyPair], str]


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def with_alg_none(make_token: MakeToken, _: KeyPair) -> str:
    return f"{part({'alg': 'none', 'kid': 'test-rsa'})}.{make_token().split('.')[1]}."


def with_the_public_key_as_secret(make_token: MakeToken, rsa_key: KeyPair) -> str:
    import hashlib
    import hmac

    public = rsa_key.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = f"{part({'alg': 'HS256', 'kid': 'test-rsa'})}.{make_token().split('.')[1]}"
    signature = hmac.new(public, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


FORGED: dict[str, Forge] = {
    "alg none": with_alg_none,
    "public key as secret": with_the_public_key_as_secret,
    "wrong audience": lambda make, _: make(aud="another"),
    "wrong issuer": lambda make, _: make(iss="https://evil.test/"),
    "expired": lambda make, _: make(exp=int(time.time()) - 60),
    "not yet valid": lambda make, _: make(nbf=int(time.time()) + 600),
    "no subject": lambda make, _: make(sub=None),
    "unknown key": lambda make, _: make(headers={"kid": "who"}),
    "8 KB": lambda make, _: make(filler="x" * 6_000),
    "changed": lambda make, _: make()[:-8] + "AAAAAAAA",
    "garbage": lambda _make, _: "not.a.token",
    "empty": lambda _make, _: "",
}


@pytest.mark.parametrize("name", list(FORGED))
async def test_an_invalid_token_returns_401(
    start_api: StartApi, make_token: MakeToken, rsa_key: KeyPair, name: str
) -> None:
    client = await start_api()
    token = FORGED[name](make_token, rsa_key)
    answer = await client.update(headers={"Authorization": f"Bearer {token}".strip()})
    assert answer.status_code == 401
    assert answer.json()["type"] == "/docs/problems/unauthenticated"
    assert answer.headers["www-authenticate"].startswith('Bearer realm="scoreboard"')
    assert (token[-20:] not in answer.text) or not token
    assert (await client.get(LEADERBOARD_PATH)).json()["total"] == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Basic YWxpY2U6c2VjcmV0"},
        {"X-Consumer-Username": "alice", "X-Credential-Identifier": "alice"},
        {"X-Authenticated-Userid": "alice", "X-Authenticated-Scope": "update:score"},
        {"X-User-Id": "alice", "X-Forwarded-User": "alice"},
    ],
)
async def test_identity_headers_of_a_gateway_are_ignored(
    start_api: StartApi, headers: dict[str, str]
) -> None:
    client = await start_api()
    assert (await client.update(headers=headers)).status_code == 401


async def test_the_bearer_scheme_is_case_insensitive(start_api: StartApi) -> None:
    client = await start_api()
    token = client.bearer("alice")["Authorization"].removeprefix("Bearer ")
    for scheme in ("bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} {token}"}
        assert (await client.update(headers=headers)).status_code == 200


def settings_for(url: str) -> Settings:
    return load(
        {
            "REDIS_URL": "redis://nowhere",
            "SCOREBOARD_JWKS_URL": url,
            "SCOREBOARD_ISSUER": ISSUER,
        }
    )


async def test_keys_are_fetched_by_url_once(jwks: dict[str, Any], make_token: MakeToken) -> None:
    async with serving_keys(jwks) as keys:
        verifier = Verifier(settings_for(keys.url))
        callers = await asyncio.gather(*(verifier.verify(make_token(f"u{n}")) for n in range(5)))
        assert [caller.subject for caller in callers] == [f"u{n}" for n in range(5)]
        assert keys.requests == 1


async def test_unknown_kids_do_not_block_valid_tokens_while_the_issuer_hangs(
    start_api: StartApi, jwks: dict[str, Any], make_token: MakeToken
) -> None:
    """Incident: requests with unknown kids used the whole capacity; others got 503."""
    async with serving_keys(jwks) as keys:
        client = await start_api(jwks_file="", jwks_url=keys.url, requests_in_flight=40)
        await eventually_async(lambda: client.api._verifier.is_ready)
        keys.answers.clear()
        headers = [
            {"Authorization": f"Bearer {make_token(headers={'kid': f'who-{n}'})}"}
            for n in range(100)
        ]
        requests = [asyncio.ensure_future(client.update(headers=one)) for one in headers]
        await eventually_async(lambda: keys.requests == 2)

        good = [await client.update(action=f"win:{number}") for number in range(5)]

        assert [answer.status_code for answer in good] == [200] * 5
        keys.answers.set()
        refused = [answer.status_code for answer in await asyncio.gather(*requests)]
        assert refused.count(503) == 100 - key_set.WAITING_MAX, "the others are refused at once"
        assert refused.count(401) == key_set.WAITING_MAX
        assert keys.requests == 2


async def test_unknown_kids_cause_a_limited_number_of_fetches(
    jwks: dict[str, Any], make_token: MakeToken, ec_key: KeyPair, rsa_key: KeyPair
) -> None:
    async with serving_keys({"keys": [rsa_key.jwk]}) as keys:
        verifier = Verifier(settings_for(keys.url))
        running = asyncio.ensure_future(verifier.run())
        try:
            await eventually_async(lambda: verifier.is_ready)
            keys.body = json.dumps(jwks).encode()
            assert await verifier.verify(make_token(key=ec_key))  # the issuer's new key
            for _ in range(10):
                with pytest.raises(Unauthenticated):
                    await verifier.verify(make_token(headers={"kid": "who"}))
            assert keys.requests == 2
        finally:
            running.cancel()


@pytest.mark.parametrize("failure", ["gone", "500", "redirect", "huge", "empty", "two of a kid"])
async def test_the_last_valid_keys_are_used_while_the_issuer_fails(
    monkeypatch: pytest.MonkeyPatch,
    jwks: dict[str, Any],
    make_token: MakeToken,
    rsa_key: KeyPair,
    failure: str,
) -> None:
    monkeypatch.setattr(key_set.UrlSource, "check_s", 0.05)
    async with serving_keys(jwks) as keys:
        verifier = Verifier(settings_for(keys.url))
        running = asyncio.ensure_future(verifier.run())
        try:
            await eventually_async(lambda: verifier.is_ready)
            match failure:
                case "gone":
                    keys.body, keys.status = b"", ""
                case "500":
                    keys.status = "500 Internal Server Error"
                case "redirect":
                    keys.status, keys.extra = "302 Found", f"Location: {keys.url}\r\n"
                case "huge":
                    keys.body += b" " * key_set.DOCUMENT_BYTES_MAX
                case "empty":
                    keys.body = b'{"keys": []}'
                case _:
                    keys.body = json.dumps({"keys": [rsa_key.jwk, rsa_key.jwk]}).encode()
            requests = keys.requests
            await eventually_async(lambda: keys.requests > requests + 1)
            assert (await verifier.verify(make_token("late"))).subject == "late"
        finally:
            running.cancel()


async def test_expired_keys_are_not_trusted(
    monkeypatch: pytest.MonkeyPatch, jwks: dict[str, Any], make_token: MakeToken
) -> None:
    async with serving_keys(jwks) as keys:
        verifier = Verifier(settings_for(keys.url))
        token = make_token()
        await verifier.verify(token)
        keys.status = "500 Internal Server Error"
        monkeypatch.setattr(key_set, "KEPT_S", -1.0)
        with pytest.raises(KeysUnavailable):
            await verifier.verify(make_token("another"))
        assert verifier.cached(token) is None


def test_only_verification_keys_are_used(rsa_key: KeyPair, ec_key: KeyPair) -> None:
    good = [rsa_key.jwk, ec_key.jwk]
    unusable = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256"},
        rsa_key.jwk | {"kid": "enc", "use": "enc"},
        rsa_key.jwk | {"kid": "ps", "alg": "PS256"},
        rsa_key.jwk | {"kid": "sign-only", "key_ops": ["sign"]},
        {name: value for name, value in rsa_key.jwk.items() if name != "kid"},
        ec_key.jwk | {"kid": "curve", "crv": "P-384"},
        "not a key",
    ]
    document = json.dumps({"keys": [*good, *unusable]}).encode()
    assert set(key_set.parse_keys(document)) == {"test-rsa", "test-ec"}


async def test_a_private_board_requires_a_token(start_api: StartApi) -> None:
    from scoreboard.model import Board

    client: ApiClient = await start_api(open=(Board(is_public=False),))
    assert (await client.get(LEADERBOARD_PATH)).status_code == 401
    good = client.bearer("viewer", "read:leaderboard")
    assert (await client.get(LEADERBOARD_PATH, headers=good)).status_code == 200
