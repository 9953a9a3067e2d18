"""The tokens of the pretended issuer verify by its key set, and only then."""

import json

import jwt
import pytest

from tests.support.fakes.tokens import AUDIENCE, ISSUER


def verify(token: str, jwks: dict) -> dict:
    key = jwt.PyJWKSet.from_dict(jwks)[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key, audience=AUDIENCE, issuer=ISSUER)


def test_both_keys_sign_what_the_published_set_verifies(make_token, rsa_key, ec_key, jwks_file):
    published = json.loads(jwks_file.read_text())
    for key in (rsa_key, ec_key):
        claims = verify(make_token("alice", "update:score", key=key), published)
        assert (claims["sub"], claims["scope"]) == ("alice", "update:score")


def test_the_set_holds_no_private_half(jwks):
    private = {"d", "p", "q", "dp", "dq", "qi"}
    assert [private & set(key) for key in jwks["keys"]] == [set(), set()]


def test_claims_can_be_changed_and_left_out(make_token, jwks):
    assert verify(make_token(jti="one", scope=None), jwks)["jti"] == "one"
    assert "scope" not in verify(make_token(scope=None), jwks)
    with pytest.raises(jwt.ExpiredSignatureError):
        verify(make_token(exp=1), jwks)
    with pytest.raises(jwt.InvalidAudienceError):
        verify(make_token(aud="others"), jwks)
