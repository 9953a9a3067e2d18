"""Which tokens are accepted, compared with PyJWT: what it refuses is refused, for the same reason.

``jwt.decode`` and ``jwt.get_unverified_header`` were used before, and are the reference.
"""

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoreboard.errors import Unauthenticated
from scoreboard.model import is_identifier
from scoreboard.runtime.settings import load
from scoreboard.security.signed_token import UPDATE, Caller, parse_token
from scoreboard.security.tokens import Verifier
from tests.support.fakes.tokens import AUDIENCE, ISSUER, KeyPair

ALGORITHMS = ["RS256", "ES256"]
NOW_S = int(time.time())
VALID: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "alice",
    "iat": NOW_S,
    "exp": NOW_S + 3600,
    "scope": UPDATE,
}
REASONS: list[tuple[type[Exception], str]] = [
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "not-yet-valid"),
    (jwt.InvalidIssuerError, "issuer"),
    (jwt.InvalidAudienceError, "audience"),
    (jwt.exceptions.InvalidSubjectError, "subject"),
    (jwt.MissingRequiredClaimError, "claims"),
    (jwt.InvalidIssuedAtError, "claims"),
    (jwt.InvalidSignatureError, "signature"),
    (jwt.InvalidAlgorithmError, "algorithm"),
    (Exception, "malformed"),
]


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def reference(token: str, keys: dict[str, jwt.PyJWK]) -> str | dict[str, Any]:
    """Return the claims that PyJWT reads, or the reason why it refuses the token."""
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return "malformed"
    alg, kid = header.get("alg"), header.get("kid")
    if not isinstance(alg, str) or not isinstance(kid, str) or not 1 <= len(kid) <= 256:
        return "malformed"
    if alg not in ALGORITHMS:
        return "algorithm"
    if kid not in keys:
        return "unknown-key"
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            keys[kid],
            algorithms=ALGORITHMS,
            audience=AUDIENCE,
            issuer=ISSUER,
            leeway=30,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
    except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
        return next(why for kind, why in REASONS if isinstance(error, kind))
    return claims


async def verified(token: str, jwks_file: Path) -> str | Caller:
    """Return the caller of a token, or the reason why it is refused."""
    verifier = Verifier(
        load(
            {
                "REDIS_URL": "redis://nowhere",
                "SCOREBOARD_JWKS_FILE": str(jwks_file),
                "SCOREBOARD_ISSUER": ISSUER,
                "SCOREBOARD_AUDIENCE": AUDIENCE,
            }
        )
    )
    try:
        return await verifier.verify(token)
    except Unauthenticated as error:
        return error.reason


@pytest.fixture
def keys(jwks: dict[str, Any]) -> dict[str, jwt.PyJWK]:
    return {one["kid"]: jwt.PyJWK(one) for one in jwks["keys"]}


Sign = Callable[..., str]


@pytest.fixture
def sign(rsa_key: KeyPair) -> Sign:
    """Return a function that signs any header and payload, given as text or as values."""

    def make(
        payload: bytes | dict[str, Any] = VALID, header: bytes | dict[str, Any] | None = None
    ) -> str:
        if not isinstance(header, bytes):
            header = json.dumps({"alg": "RS256", "kid": rsa_key.kid} | (header or {})).encode()
        if not isinstance(payload, bytes):
            payload = json.dumps(payload).encode()
        signed = f"{encode(header)}.{encode(payload)}"
        algorithm = jwt.get_algorithm_by_name("RS256")
        return f"{signed}.{encode(algorithm.sign(signed.encode(), rsa_key.private))}"

    return make


ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.5, 10**18, 2**64, 10**30, 10**400, -(10**400)),
    *("", "1", str(NOW_S + 100), " 12 ", "soon", "9" * 1000, [], [1], ["a"], {}, {"a": 1}),
    *(NOW_S + 3600.5, NOW_S + 29, NOW_S + 31, NOW_S - 29, NOW_S - 31, NOW_S + 9999),
    *(ISSUER, AUDIENCE, [AUDIENCE], [AUDIENCE, 1], [[AUDIENCE]], ["x", AUDIENCE], [ISSUER]),
    *("x" * 128, "x" * 129, "é", "a b", "a\n"),
]
NOT_JSON: list[Any] = [float("nan"), float("inf"), -float("inf"), "\ud800"]
"""Python's decoder reads these, but RFC 8259 does not allow them."""

CLAIMS = ("iss", "aud", "sub", "exp", "iat", "nbf", "jti", "scope", "scp", "other")


@pytest.mark.parametrize("claim", CLAIMS)
async def test_each_claim_with_odd_values_is_judged_as_by_pyjwt(
    sign: Sign, keys: dict[str, jwt.PyJWK], jwks_file: Path, claim: str
) -> None:
    present = [sign(VALID | {claim: value}) for value in ODD]
    absent = sign({name: value for name, value in VALID.items() if name != claim})
    for value, token in zip([*ODD, "(absent)"], [*present, absent], strict=True):
        expected = reference(token, keys)
        found = await verified(token, jwks_file)
        compare(found, expected, f"{claim} = {value!r:.60}")


def compare(found: str | Caller, expected: str | dict[str, Any], what: str) -> None:
    if isinstance(expected, str):
        assert found == expected, what
    elif isinstance(found, Caller):
        assert (found.subject, found.issuer) == (expected["sub"], expected["iss"]), what
        assert found.expires_at_s == float(expected["exp"]), what
    else:  # refused by the rules of this project, which are stricter
        is_subject = is_identifier(expected["sub"])
        is_typed = type(expected["exp"]) in {int, float} and abs(expected["exp"]) < 10**300
        is_typed &= all(
            isinstance(claim, (str, list, type(None)))
            and all(isinstance(s, str) for s in claim or "")
            for claim in (expected.get("scope"), expected.get("scp"))
        )
        assert found == ("subject" if is_typed else "claims"), what
        assert not is_typed or not is_subject, what


@pytest.mark.parametrize("value", NOT_JSON)
@pytest.mark.parametrize("claim", CLAIMS)
async def test_a_payload_that_is_not_json_is_refused(
    sign: Sign, jwks_file: Path, claim: str, value: Any
) -> None:
    assert await verified(sign(VALID | {claim: value}), jwks_file) == "malformed"


HEADERS: list[bytes | dict[str, Any]] = [
    {},
    *({"alg": alg} for alg in ("none", "None", "", "HS256", "RS512", "PS256", "ES256", 7, None)),
    *({"kid": kid} for kid in ("", "who", "x" * 257, 7, None, ["test-rsa"], "test-ec")),
    *({"typ": typ} for typ in ("JWT", "at+jwt", 7, None)),
    *({"crit": crit} for crit in ([], None, "b64", ["b64"], ["exp"], [1], {}, True)),
    *({"b64": b64} for b64 in (True, None, 0, 1, "false")),
    {"b64": True, "crit": ["b64"]},
    {"b64": True, "crit": ["b64", "exp"]},
    {"b64": False, "crit": ["b64"]},
    {"b64": False},
    {"jwk": {"kty": "oct", "k": "c2VjcmV0"}},
    {"jku": "https://elsewhere.test/jwks", "x5u": "https://elsewhere.test/"},
    b"",
    b"{}",
    b"[]",
    b"null",
    b'"RS256"',
    b'{"alg":"RS256"}',
    b'{"kid":"test-rsa"}',
    b'{"alg":"RS256","kid":"test-rsa"',
    b'{"alg":"RS256","kid":"test-rsa"}x',
    b'{"alg":"RS256","kid":"test-rsa",}',
    b'{"alg":"none","alg":"RS256","kid":"test-rsa"}',
    b'{"alg":"RS256","alg":"none","kid":"test-rsa"}',
    b'{"alg":"RS256","kid":"test-ec","kid":"test-rsa"}',
    b'{"alg":"RS256","kid":"test-rsa","x":"\xff"}',
    b'{"alg":"RS256","kid":"test-rsa","x":"\x01"}',
    b'{"alg":"RS256","kid":"test-rsa","x":01}',
    b"[" * 2000,
]


@pytest.mark.parametrize("number", range(len(HEADERS)))
async def test_each_odd_header_is_judged_as_by_pyjwt(
    sign: Sign, keys: dict[str, jwt.PyJWK], jwks_file: Path, number: int
) -> None:
    token = sign(VALID, HEADERS[number])
    compare(await verified(token, jwks_file), reference(token, keys), repr(HEADERS[number])[:80])


PAYLOADS = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"7",
    b"\xff",
    b"[" * 1500,
    json.dumps(VALID).encode()[:-1],
    json.dumps(VALID).encode() + b" x",
    b" " + json.dumps(VALID).encode() + b"\r\n",
    json.dumps(VALID).encode()[:-1] + b',"sub":"bob"}',
    json.dumps(VALID).encode()[:-1] + b',"exp":1}',
    json.dumps(VALID | {"nested": {"a": [{"b": [1, None, "x"]}]}}).encode(),
    json.dumps(VALID).encode()[:-1] + b',"exp":9999999999.5}',
    json.dumps(VALID).encode()[:-1] + b',"exp":99999999999999999999999999}',
    json.dumps(VALID).encode()[:-1] + b',"x":"\x00"}',
    json.dumps(VALID).encode()[:-1] + b",\"x\":'single'}",
]


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
async def test_each_odd_payload_is_judged_as_by_pyjwt(
    sign: Sign, keys: dict[str, jwt.PyJWK], jwks_file: Path, number: int
) -> None:
    token = sign(PAYLOADS[number])
    found, expected = await verified(token, jwks_file), reference(token, keys)
    compare(found, expected, repr(PAYLOADS[number])[:80])


async def test_each_change_of_the_encoding_is_judged_as_by_pyjwt(
    sign: Sign, keys: dict[str, jwt.PyJWK], jwks_file: Path
) -> None:
    token = sign()
    header, payload, signature = token.split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    variants = [
        token + ".",
        "." + token,
        token + ".x",
        f"{header}..{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}.{payload[:-1]}.{signature}",
        *(f"{header}.{payload}.{signature[:-1]}{letter}" for letter in last),
        *(
            f"{header}.{payload}.{signature}{end}"
            for end in ("=", "==", "===", "\n", " ", "A", "+")
        ),
        *(
            f"{header}{end}.{payload}.{signature}"
            for end in ("=", "==", "===", "\n", " ", "A", "/")
        ),
        *(
            f"{header}.{payload}{end}.{signature}"
            for end in ("=", "==", "===", "\n", " ", "A", "!")
        ),
        f"{header}.{payload}.{signature.replace('-', '+').replace('_', '/')}+",
        f"{header}.{payload}.{signature[:20]}+{signature[21:]}",
        f"{header}.{payload}.{signature[:20]}={signature[21:]}",
        f"{header}.{payload}.{signature[:20]}\n{signature[20:]}",
        f"{header}.{payload}.{signature[4:]}",
        f"{header}.{payload}.{signature}{signature}",
    ]
    for variant in variants:
        found, expected = await verified(variant, jwks_file), reference(variant, keys)
        compare(found, expected, variant[-60:])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_bytes_are_read_in_another_way_than_by_pyjwt(data: st.DataObject) -> None:
    part = st.binary(max_size=12).map(encode) | st.text("AZaz09-_+/=.", max_size=8)
    header = st.just(encode(b'{"alg":"RS256","kid":"k"}')) | part
    token = ".".join(data.draw(st.tuples(header, part, part)))
    try:
        whole = jwt.api_jws.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError):
        whole = None
    try:
        found = parse_token(token.encode())
    except Unauthenticated:
        return
    assert whole is not None
    assert (found.payload, found.signature) == (whole["payload"], whole["signature"])
    assert found.signed == token.rpartition(".")[0].encode()
