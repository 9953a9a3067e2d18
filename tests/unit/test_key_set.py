"""Key sets of real issuers: what cannot be used is ignored, one key at a time (RFC 7517, 5)."""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from structlog.testing import capture_logs

from scoreboard.errors import KeysUnavailable
from scoreboard.security import key_set
from scoreboard.security.key_set import KeyCache, KeySet, read_key_set
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import KeyPair


def read(*keys: Any) -> KeySet:
    return read_key_set(json.dumps({"keys": keys}).encode())


def number(bits: int) -> str:
    size = (bits + 7) // 8
    return base64.urlsafe_b64encode(((1 << bits) - 1).to_bytes(size, "big")).rstrip(b"=").decode()


UNUSABLE = {
    "EC without y": lambda jwk: {name: jwk[name] for name in ("kty", "crv", "x")} | {"kid": "bad"},
    "x5c only": lambda _: {"kty": "RSA", "kid": "bad", "x5c": ["MIIB"]},
    "a point off the curve": lambda jwk: jwk | {"kid": "bad", "y": jwk["x"]},
    "a number as kid": lambda jwk: jwk | {"kid": 7},
    "no kid": lambda jwk: {name: jwk[name] for name in ("kty", "crv", "x", "y")},
    "an empty kid": lambda jwk: jwk | {"kid": ""},
    "a kid with a space": lambda jwk: jwk | {"kid": "a b"},
    "a long kid": lambda jwk: jwk | {"kid": "k" * 257},
    "coordinates that are numbers": lambda jwk: jwk | {"kid": "bad", "x": 5},
    "use that is a list": lambda jwk: jwk | {"kid": "bad", "use": ["sig"]},
    "null": lambda _: None,
    "a list": lambda _: [],
    "a text": lambda _: "key",
    "a short RSA key": lambda _: {"kty": "RSA", "kid": "bad", "n": number(1024), "e": "AQAB"},
    "a huge RSA key": lambda _: {"kty": "RSA", "kid": "bad", "n": number(20_000), "e": "AQAB"},
    "an exponent of 1": lambda _: {"kty": "RSA", "kid": "bad", "n": number(2048), "e": "AQ"},
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_key_that_cannot_be_used_is_ignored_and_named(ec_key: KeyPair, name: str) -> None:
    found = read(ec_key.jwk, UNUSABLE[name](ec_key.jwk), ec_key.jwk | {"kid": "last"})

    assert set(found.keys) == {"test-ec", "last"}
    assert len(found.faults) == 1
    assert found.faults[0].startswith("key 2: ")


@pytest.mark.parametrize(
    "other",
    [
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "A" * 43},
        {"kty": "EC", "crv": "P-521", "kid": "p521", "x": "AA", "y": "AA"},
        {"kty": "future", "kid": "future"},
        {},
    ],
    ids=str,
)
def test_a_key_of_an_unsupported_type_is_ignored_without_a_fault(
    ec_key: KeyPair, other: dict[str, Any]
) -> None:
    found = read(other, ec_key.jwk)

    assert set(found.keys) == {"test-ec"}
    assert found.faults == ()


def test_two_keys_with_one_kid_are_both_ignored(ec_key: KeyPair, rsa_key: KeyPair) -> None:
    found = read(rsa_key.jwk | {"kid": "twice"}, rsa_key.jwk, ec_key.jwk | {"kid": "twice"})

    assert set(found.keys) == {"test-rsa"}
    assert found.faults == ("two keys have the kid 'twice'",)


def test_a_key_that_is_listed_twice_is_read_once(rsa_key: KeyPair) -> None:
    found = read(rsa_key.jwk, rsa_key.jwk | {"alg": "RS256", "x5t": "abc"})

    assert set(found.keys) == {"test-rsa"}
    assert found.faults == ()


def test_an_encryption_key_may_have_the_kid_of_a_signature_key(rsa_key: KeyPair) -> None:
    found = read(rsa_key.jwk | {"use": "enc", "n": number(2048)}, rsa_key.jwk)

    assert found.keys["test-rsa"].material == (("kty", "RSA"), *_public(rsa_key))
    assert found.faults == ()


def _public(pair: KeyPair) -> tuple[tuple[str, str], ...]:
    return tuple((name, pair.jwk[name]) for name in ("n", "e"))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [{}]}',
        b'{"keys": [' + b"[" * 30_000,
        b'{"keys": ["\xff"]}',
    ],
    ids=lambda text: text[:16].decode("latin-1"),
)
def test_a_document_without_a_usable_key_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError):
        read_key_set(document)


def test_the_list_of_faults_is_bounded(ec_key: KeyPair) -> None:
    found = read(*[1] * 5000, ec_key.jwk, *[{"kty": "RSA", "kid": "x", "n": "é" * 5000}] * 3)

    assert len(found.faults) == key_set.FAULTS_SHOWN + 1
    assert found.faults[-1] == "and 4995 more"
    assert all(len(text) <= key_set.SHOWN_LENGTH for text in found.faults)


class Issuer:
    """A source whose reads return the document of their start, once ``answers`` is set."""

    check_s = 60.0
    forced_check_s = 30.0

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.answers = asyncio.Event()
        self.answers.set()
        self.reads = 0

    async def read(self) -> bytes:
        self.reads += 1
        answer = json.dumps(self.document).encode()
        await self.answers.wait()
        return answer


class Running:
    """Runs a cache in a task of its own during a test."""

    def __init__(self, issuer: Issuer) -> None:
        self.removed: list[frozenset[str]] = []
        self.cache = KeyCache(issuer, self.removed.append)

    async def __aenter__(self) -> KeyCache:
        self.task = asyncio.create_task(self.cache.run())
        await eventually_async(lambda: self.cache.is_loaded)
        return self.cache

    async def __aexit__(self, *exception: object) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


@pytest.fixture
def kids() -> Iterator[str]:
    return (f"unknown-{number}" for number in range(10_000))


async def test_many_unknown_kids_block_few_callers_and_cause_one_read(
    jwks: dict[str, Any], kids: Iterator[str]
) -> None:
    """Incident: while the issuer hung, unknown kids used the whole capacity of requests.

    Valid tokens got 503.
    """
    issuer = Issuer(jwks)
    async with Running(issuer) as cache:
        issuer.answers.clear()
        callers = [asyncio.create_task(cache.find(next(kids))) for _ in range(600)]
        await eventually_async(lambda: issuer.reads == 2)

        done, waiting = await asyncio.wait(callers, timeout=0)

        assert len(waiting) == key_set.WAITING_MAX
        for one in done:
            assert isinstance(one.exception(), KeysUnavailable)
        assert await cache.find("test-rsa") is not None, "callers with known keys do not wait"
        issuer.answers.set()
        assert await asyncio.gather(*waiting) == [None] * key_set.WAITING_MAX
        assert [await cache.find(next(kids)) for _ in range(100)] == [None] * 100
        assert issuer.reads == 2


async def test_the_wait_for_an_issuer_that_hangs_is_bounded(
    jwks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "WAIT_S", 0.1)
    issuer = Issuer(jwks)
    async with Running(issuer) as cache:
        issuer.answers.clear()

        with pytest.raises(KeysUnavailable):
            await cache.find("new")

        assert cache._waiting == 0


async def test_a_new_key_is_found_after_a_read_in_progress_without_it(
    jwks: dict[str, Any], ec_key: KeyPair
) -> None:
    issuer = Issuer(jwks)
    cache = KeyCache(issuer, lambda _: None)
    issuer.answers.clear()
    running = asyncio.create_task(cache.run())
    await eventually_async(lambda: issuer.reads == 1)
    finding = asyncio.create_task(cache.find("new"))
    await asyncio.sleep(0)

    issuer.document = {"keys": [*jwks["keys"], ec_key.jwk | {"kid": "new"}]}
    issuer.answers.set()

    assert await finding is not None
    assert issuer.reads == 2
    running.cancel()


async def test_a_cancelled_caller_does_not_cancel_the_read(
    jwks: dict[str, Any], ec_key: KeyPair
) -> None:
    issuer = Issuer(jwks)
    async with Running(issuer) as cache:
        issuer.answers.clear()
        issuer.document = {"keys": [ec_key.jwk | {"kid": "new"}]}
        first = asyncio.create_task(cache.find("new"))
        await eventually_async(lambda: issuer.reads == 2)
        second = asyncio.create_task(cache.find("new"))
        await asyncio.sleep(0)

        first.cancel()
        issuer.answers.set()

        assert await second is not None


async def test_unchanged_faults_are_logged_once(
    jwks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Issuer, "check_s", 0.01)
    issuer = Issuer({"keys": [*jwks["keys"], {"kty": "RSA", "kid": "bad"}]})
    with capture_logs() as lines:
        async with Running(issuer):
            for number in range(3):  # the document changes, its faults do not
                issuer.document = issuer.document | {"number": number}
                reads = issuer.reads
                await eventually_async(lambda reads=reads: issuer.reads > reads + 1)

    ignored = [line for line in lines if line["event"] == "keys_ignored"]
    assert len(ignored) == 1
    assert ignored[0]["reasons"][0].startswith("key 3: ")


def test_ed25519_keys_verify_proofs_only(ec_key: KeyPair) -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    jwk = KeyPair(kid="ed", algorithm="EdDSA", private=private).jwk
    document = json.dumps({"keys": [ec_key.jwk, jwk, jwk | {"kid": "448", "crv": "Ed448"}]})

    tokens = read_key_set(document.encode())
    proofs = read_key_set(document.encode(), key_set.PROOF_ALGORITHMS)

    assert set(tokens.keys) == {"test-ec"}
    assert set(proofs.keys) == {"test-ec", "ed"}
    assert tokens.faults == proofs.faults == ()
