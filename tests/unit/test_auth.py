"""Verification of access tokens: which are accepted, and the reason of each refusal."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from scoreboard.errors import KeysUnavailable, OperatorMistake, SettingInvalid, Unauthenticated
from scoreboard.runtime.settings import Settings, load
from scoreboard.security import signatures
from scoreboard.security import tokens as auth
from scoreboard.security.tokens import READ, UPDATE, UPDATE_ANY, Caller, LocalIssuer, Verifier
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import AUDIENCE, ISSUER, KeyPair, MakeToken


def settings_for(jwks_file: Path | str, **more: str) -> Settings:
    return load(
        {
            "REDIS_URL": "redis://nowhere",
            "SCOREBOARD_JWKS_FILE": str(jwks_file),
            "SCOREBOARD_ISSUER": ISSUER,
            "SCOREBOARD_AUDIENCE": AUDIENCE,
        }
        | more
    )


@pytest.fixture
def verifier(jwks_file: Path) -> Verifier:
    return Verifier(settings_for(jwks_file))


async def reason_of(verifier: Verifier, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await verifier.verify(token)
    assert token not in str(caught.value) or not token
    return caught.value.reason


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_a_valid_token_returns_its_caller(verifier: Verifier, make_token: MakeToken) -> None:
    caller = await verifier.verify(make_token("auth0|42", "update:score read:leaderboard"))
    assert (caller.subject, caller.issuer) == ("auth0|42", ISSUER)
    assert caller.scopes == {UPDATE, READ}
    assert caller.expires_at_s > time.time()


async def test_an_es256_token_is_accepted(
    verifier: Verifier, make_token: MakeToken, ec_key: KeyPair
) -> None:
    assert (await verifier.verify(make_token(key=ec_key))).subject == "alice"


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": "update:score  update:score:any"}, {UPDATE, UPDATE_ANY}),
        ({"scope": ["update:score"]}, {UPDATE}),
        ({"scope": None, "scp": ["read:leaderboard"]}, {READ}),
        ({"scope": "update:score", "scp": "read:leaderboard"}, {UPDATE, READ}),
        ({"scope": "update:scores"}, {"update:scores"}),
        ({"scope": "scores:raid openid", "scp": ["scores:raid"]}, {"scores:raid", "openid"}),
        ({"scope": ["two words", "é", "", "x" * 65, "x" * 64]}, {"x" * 64}),
        (
            {"scope": " ".join(f"s{n}" for n in range(40)) + " update:score"},
            {UPDATE, *(f"s{n}" for n in range(32))},
        ),
        ({"scope": None}, set()),
    ],
)
async def test_scopes_are_read_as_whole_words_from_scope_and_scp(
    verifier: Verifier, make_token: MakeToken, claims: dict[str, Any], scopes: set[str]
) -> None:
    assert (await verifier.verify(make_token(**claims))).scopes == scopes


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"iss": "https://other.test/"}, "issuer"),
        ({"iss": ISSUER.rstrip("/")}, "issuer"),
        ({"iss": None}, "claims"),
        ({"iss": [ISSUER]}, "issuer"),
        ({"aud": "another"}, "audience"),
        ({"aud": ["another", "third"]}, "audience"),
        ({"aud": None}, "claims"),
        ({"exp": None}, "claims"),
        ({"exp": 1}, "expired"),
        ({"exp": "soon"}, "malformed"),
        ({"nbf": 9_999_999_999}, "not-yet-valid"),
        ({"iat": 9_999_999_999}, "not-yet-valid"),
        ({"sub": None}, "claims"),
        ({"sub": 7}, "subject"),
        ({"sub": ""}, "subject"),
        ({"sub": "with space"}, "subject"),
        ({"sub": "line\n"}, "subject"),
        ({"sub": "é"}, "subject"),
        ({"sub": "x" * 129}, "subject"),
        ({"scope": 5}, "claims"),
        ({"scp": [1]}, "claims"),
    ],
)
async def test_an_invalid_claim_is_refused_with_its_reason(
    verifier: Verifier,
    make_token: MakeToken,
    rsa_key: KeyPair,
    overrides: dict[str, Any],
    reason: str,
) -> None:
    claims = jwt.decode(make_token(), options={"verify_signature": False}) | overrides
    present = {name: value for name, value in claims.items() if value is not None}
    # PyJWT's own encoder refuses some of these.
    token = jwt.api_jws.encode(
        json.dumps(present).encode(), rsa_key.private, "RS256", {"kid": rsa_key.kid}
    )
    assert await reason_of(verifier, token) == reason


async def test_leeway_allows_a_small_clock_skew(verifier: Verifier, make_token: MakeToken) -> None:
    now_s = int(time.time())
    await verifier.verify(make_token(exp=now_s - 5))
    await verifier.verify(make_token(nbf=now_s + 5))
    assert await reason_of(verifier, make_token(exp=now_s - 60)) == "expired"


async def test_one_matching_audience_of_several_is_accepted(
    verifier: Verifier, make_token: MakeToken
) -> None:
    await verifier.verify(make_token(aud=["another", AUDIENCE]))


async def test_alg_none_is_refused(verifier: Verifier, make_token: MakeToken) -> None:
    payload = make_token().split(".")[1]
    for alg in ("none", "None", "NONE", ""):
        token = f"{part({'alg': alg, 'kid': 'test-rsa', 'typ': 'JWT'})}.{payload}."
        assert await reason_of(verifier, token) == "algorithm"


async def test_a_public_key_used_as_a_shared_secret_is_refused(
    verifier: Verifier, make_token: MakeToken, rsa_key: KeyPair
) -> None:
    public = rsa_key.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    header, payload = part({"alg": "HS256", "kid": "test-rsa"}), make_token().split(".")[1]
    algorithm = jwt.get_algorithm_by_name("HS256")
    signature = algorithm.sign(f"{header}.{payload}".encode(), public)
    token = f"{header}.{payload}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    assert await reason_of(verifier, token) == "algorithm"


async def test_an_allowed_algorithm_that_does_not_match_the_key_is_refused(
    verifier: Verifier, make_token: MakeToken, ec_key: KeyPair
) -> None:
    token = make_token(key=ec_key, headers={"kid": "test-rsa"})
    assert await reason_of(verifier, token) == "algorithm"


async def test_a_signature_by_another_key_with_a_known_kid_is_refused(
    verifier: Verifier, make_token: MakeToken
) -> None:
    other = KeyPair(
        kid="test-ec", algorithm="ES256", private=ec.generate_private_key(ec.SECP256R1())
    )
    assert await reason_of(verifier, make_token(key=other)) == "signature"


async def test_a_changed_payload_is_refused(verifier: Verifier, make_token: MakeToken) -> None:
    header, payload, signature = make_token("alice").split(".")
    other = make_token("mallory").split(".")[1]
    assert payload != other
    assert await reason_of(verifier, f"{header}.{other}.{signature}") == "signature"


async def test_an_unknown_kid_is_refused(verifier: Verifier, make_token: MakeToken) -> None:
    assert await reason_of(verifier, make_token(headers={"kid": "who"})) == "unknown-key"


@pytest.mark.parametrize(
    "token",
    [
        "garbage",
        "a.b.c",
        "..",
        "a.b",
        "é.é.é",
        "\0.\0.\0",
        f"{part([1])}.{part({})}.x",
        f"{part({'alg': 'RS256'})}.{part({})}.x",
        f"{part({'alg': 'RS256', 'kid': 7})}.{part({})}.x",
        f"{part({'alg': ['RS256'], 'kid': 'test-rsa'})}.{part({})}.x",
        f"{base64.urlsafe_b64encode(b'[' * 2500).decode()}.{part({})}.x",
    ],
)
async def test_a_malformed_token_is_refused(verifier: Verifier, token: str) -> None:
    assert await reason_of(verifier, token) == "malformed"


async def test_a_missing_token_has_its_own_reason(verifier: Verifier) -> None:
    assert await reason_of(verifier, "") == "missing"


async def test_an_oversized_token_is_refused_before_it_is_parsed(
    verifier: Verifier, make_token: MakeToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_token(filler="x" * 15_000)
    assert len(token) > 20_000

    def parse(*_: object) -> None:
        pytest.fail("it was parsed")

    monkeypatch.setattr(signatures, "parse_token", parse)
    assert await reason_of(verifier, token) == "too-long"


async def test_a_verified_token_is_cached_until_it_expires(
    verifier: Verifier, make_token: MakeToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_token()
    assert verifier.cached(token) is None
    caller = await verifier.verify(token)
    assert verifier.cached(token) is caller
    monkeypatch.setattr(auth.time, "time", lambda: caller.expires_at_s)
    assert verifier.cached(token) is None
    monkeypatch.undo()
    assert verifier.cached(token) is None


async def test_the_token_cache_is_bounded_and_keeps_recently_used_tokens(
    jwks_file: Path, make_token: MakeToken, ec_key: KeyPair
) -> None:
    verifier = Verifier(settings_for(jwks_file, SCOREBOARD_TOKEN_CACHE="4"))
    used, *others = [make_token(f"user{number}", key=ec_key) for number in range(20)]
    await verifier.verify(used)
    for token in others:
        await verifier.verify(token)
        assert verifier.cached(used)
        assert len(verifier._cache) <= 4
    assert verifier.cached(others[-1])
    assert sum(verifier.cached(token) is not None for token in others) <= 3


async def test_a_header_of_a_cached_token_identifies_the_same_caller(
    verifier: Verifier, make_token: MakeToken
) -> None:
    token = make_token("alice")
    caller = await verifier.authenticate(b"bearer " + token.encode())
    assert caller.subject == "alice"
    for start in (b"Bearer ", b"bearer ", b"BEARER  "):
        assert await verifier.authenticate(start + token.encode()) is caller
    for wrong in (None, b"", b"Bearer ", token.encode(), b"Bearer  " + token.encode() + b" "):
        with pytest.raises(Unauthenticated) as caught:
            await verifier.authenticate(wrong)
        assert caught.value.reason == "missing"
    assert len(verifier._cache) == 1


async def test_a_refused_token_is_not_cached(verifier: Verifier, make_token: MakeToken) -> None:
    header, payload, signature = make_token().split(".")
    for token in (
        f"{header}.{payload}.{signature[:-4]}AAAA",
        make_token(exp=1),
        make_token(aud="another"),
        make_token(headers={"kid": "who"}),
    ):
        await reason_of(verifier, token)
        assert verifier.cached(token) is None
    assert len(verifier._cache) == 0


async def test_cached_tokens_of_a_removed_key_are_dropped(
    tmp_path: Path, jwks: dict[str, Any], make_token: MakeToken, ec_key: KeyPair, rsa_key: KeyPair
) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(jwks))
    verifier = Verifier(settings_for(path))
    by_rsa, by_ec = make_token(), make_token(key=ec_key)
    await verifier.verify(by_rsa)
    await verifier.verify(by_ec)
    path.write_text(json.dumps({"keys": [ec_key.jwk]}))

    async def is_dropped() -> bool:
        # An unknown kid makes the verifier read the file again.
        await reason_of(verifier, make_token(headers={"kid": "who"}))
        return verifier.cached(by_rsa) is None

    await eventually_async(is_dropped)
    assert await reason_of(verifier, by_rsa) == "unknown-key"
    assert verifier.cached(by_ec)


async def test_an_invalid_key_set_does_not_replace_a_valid_one(
    tmp_path: Path, jwks: dict[str, Any], make_token: MakeToken
) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(jwks))
    verifier = Verifier(settings_for(path))
    await verifier.verify(make_token())
    for broken in ("", "{}", '{"keys": []}', "[" * 100, '{"keys": "x"}'):
        path.write_text(broken)
        verifier._keys._forced_until_s = 0.0
        await reason_of(verifier, make_token(headers={"kid": "who"}))
        assert await verifier.verify(make_token("bob")) == await verifier.verify(make_token("bob"))


async def test_verify_raises_keys_unavailable_without_any_keys(
    tmp_path: Path, make_token: MakeToken
) -> None:
    verifier = Verifier(settings_for(tmp_path / "absent.json"))
    assert not verifier.is_ready
    with pytest.raises(KeysUnavailable):
        await verifier.verify(make_token())


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"SCOREBOARD_ISSUER": ""}, "SCOREBOARD_ISSUER"),
        ({"SCOREBOARD_JWKS_FILE": ""}, "SCOREBOARD_JWKS_FILE"),
        ({"SCOREBOARD_JWKS_URL": "https://issuer.test/jwks"}, "SCOREBOARD_JWKS_FILE"),
        (
            {
                "SCOREBOARD_JWKS_FILE": "",
                "SCOREBOARD_JWKS_URL": "http://issuer.test/jwks",
                "SCOREBOARD_ENVIRONMENT": "production",
            },
            "SCOREBOARD_JWKS_URL",
        ),
    ],
)
def test_a_missing_or_unsafe_setting_is_named(changes: dict[str, str], variable: str) -> None:
    with pytest.raises(SettingInvalid, match=variable):
        Verifier(settings_for("jwks.json", **changes))


async def test_tokens_of_a_local_issuer_are_verified_with_its_key_set(tmp_path: Path) -> None:
    issuer = LocalIssuer.create(tmp_path / "identity")
    verifier = Verifier(settings_for(issuer.jwks_file, SCOREBOARD_ISSUER=issuer.issuer))
    caller = await verifier.verify(issuer.issue("alice", [UPDATE, READ], 60))
    assert caller == Caller("alice", frozenset({UPDATE, READ}), caller.expires_at_s, issuer.issuer)
    assert 0 < caller.expires_at_s - time.time() <= 60


def test_the_key_file_of_a_local_issuer_is_private(tmp_path: Path) -> None:
    issuer = LocalIssuer.create(tmp_path)
    key_file = tmp_path / "issuer-key.pem"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert issuer.jwks_file.stat().st_mode & 0o777 == 0o644
    assert '"d"' not in issuer.jwks_file.read_text()
    key_file.chmod(0o644)
    with pytest.raises(OperatorMistake, match="chmod 600"):
        LocalIssuer.load(tmp_path)


def test_creating_a_local_issuer_twice_keeps_its_files(tmp_path: Path) -> None:
    first = LocalIssuer.create(tmp_path).jwks_file.read_bytes()
    assert LocalIssuer.create(tmp_path).jwks_file.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["issuer-key.pem", "jwks.json"]


def test_load_names_a_folder_without_an_issuer(tmp_path: Path) -> None:
    with pytest.raises(OperatorMistake, match=str(tmp_path)):
        LocalIssuer.load(tmp_path)


def test_an_invalid_subject_gets_no_token(tmp_path: Path) -> None:
    with pytest.raises(OperatorMistake, match="subject"):
        LocalIssuer.create(tmp_path).issue("a b", [READ])
