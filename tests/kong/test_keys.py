"""The gateway's keys: conversion from a key set, rotation, revocation, and their file."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from cli.gateway.config import write_atomically
from cli.gateway.keys import KeyRow, merge_rows, rows_in, rows_of
from cli.gateway.kong_yaml import read_text
from scoreboard.errors import OperatorMistake
from scoreboard.security.key_set import parse_keys
from tests.support.fakes.tokens import KeyPair

GRACE_S = 1000


def rows(*jwks: dict[str, Any]) -> tuple[KeyRow, ...]:
    return rows_of(parse_keys(json.dumps({"keys": jwks}).encode()))


def test_rsa_and_ec_keys_are_converted_to_pem(rsa_key: KeyPair, ec_key: KeyPair) -> None:
    found = rows(rsa_key.jwk, ec_key.jwk)
    assert [(row.kid, row.algorithm) for row in found] == [
        ("test-ec", "ES256"),
        ("test-rsa", "RS256"),
    ]
    for row, pair in zip(found, (ec_key, rsa_key), strict=True):
        assert load_pem_public_key(row.pem.encode()) == pair.private.public_key()


def test_the_key_of_rfc_7517_has_the_known_pem() -> None:
    # RFC 7517, appendix A.1: the EC key, as OpenSSL writes it.
    vector = {
        "kty": "EC",
        "crv": "P-256",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        "kid": "1",
    }
    (row,) = rows(vector)
    body = base64.b64decode("".join(row.pem.splitlines()[1:-1]))
    point = bytes([4]) + b"".join(
        base64.urlsafe_b64decode(vector[name] + "=") for name in ("x", "y")
    )
    assert body.endswith(point)
    assert body[:2] == b"\x30\x59"  # SubjectPublicKeyInfo of an uncompressed P-256 point


def test_alg_and_use_are_optional(rsa_key: KeyPair) -> None:
    bare = {k: v for k, v in rsa_key.jwk.items() if k not in {"alg", "use"}}
    (row,) = rows(bare)
    assert row.algorithm == "RS256"


def _weak() -> dict[str, Any]:
    private = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    return KeyPair(kid="weak", algorithm="RS256", private=private).jwk


def _p384() -> dict[str, Any]:
    private = ec.generate_private_key(ec.SECP384R1())
    return KeyPair(kid="p384", algorithm="ES384", private=private).jwk


@pytest.mark.parametrize(
    "unusable",
    [
        _weak(),
        _p384(),
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "A" * 43},
    ],
)  # fmt: skip
def test_weak_and_unsupported_keys_are_ignored(ec_key: KeyPair, unusable: dict[str, Any]) -> None:
    assert [row.kid for row in rows(unusable, ec_key.jwk)] == ["test-ec"]
    with pytest.raises(ValueError, match="no RS256 or ES256"):
        rows(unusable)


def test_keys_for_encryption_or_other_algorithms_are_ignored(
    rsa_key: KeyPair, ec_key: KeyPair
) -> None:
    for change in ({"use": "enc"}, {"alg": "RSA-OAEP"}, {"alg": "PS256"}, {"key_ops": ["encrypt"]}):
        assert [row.kid for row in rows({**rsa_key.jwk, **change}, ec_key.jwk)] == ["test-ec"]


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no RS256"):
        rows()


def test_two_keys_with_one_kid_are_ignored(rsa_key: KeyPair, ec_key: KeyPair) -> None:
    other = ec_key.jwk | {"kid": "other"}
    assert [row.kid for row in rows(rsa_key.jwk, ec_key.jwk | {"kid": rsa_key.kid}, other)] == [
        "other"
    ]


@pytest.mark.parametrize("kid", ["a b", "schlüssel", "a\n", "\x7f"])
def test_an_invalid_kid_is_refused(ec_key: KeyPair, kid: str) -> None:
    with pytest.raises(ValueError, match="kid"):
        rows({**ec_key.jwk, "kid": kid})


# Rotation ---------------------------------------------------------------------------------------


def row(kid: str, retired_at_s: int | None = None) -> KeyRow:
    return KeyRow(kid, "RS256", f"PEM of {kid}", retired_at_s)


def merge(before: list[KeyRow], now: list[KeyRow], now_s: int, *revoked: str) -> list[KeyRow]:
    return list(merge_rows(before, now, now_s=now_s, grace_s=GRACE_S, revoked=frozenset(revoked)))


def test_a_removed_key_is_kept_for_the_lifetime_of_a_token() -> None:
    first = merge([row("old")], [row("new")], 5000)
    assert first == [row("new"), row("old", 5000)]
    assert merge(first, [row("new")], 5000 + GRACE_S - 1) == first
    assert merge(first, [row("new")], 5000 + GRACE_S) == [row("new")]


def test_a_key_that_reappears_is_current() -> None:
    assert merge([row("a", 5000), row("b")], [row("a"), row("b")], 5001) == [row("a"), row("b")]


def test_a_key_with_a_reused_kid_is_replaced_at_once() -> None:
    other = KeyRow("a", "ES256", "another")
    assert merge([row("a")], [other], 5000) == [other]


def test_a_revoked_key_is_removed_at_once() -> None:
    assert merge([row("a"), row("b")], [row("b")], 5000, "a") == [row("b")]
    assert merge([], [row("a"), row("b")], 5000, "a") == [row("b")]


def test_the_last_key_cannot_be_revoked() -> None:
    with pytest.raises(ValueError, match="no key"):
        merge([row("a")], [row("a")], 5000, "a")


ROW = "{key: k1, algorithm: RS256, rsa_public_key: PEM}"


@pytest.mark.parametrize(
    "text",
    [
        "a: b",
        "- 1",
        "just words",
        "5",
        "# nothing but a comment",
        "null",
        "consumers:",
        "consumers: []",
        "consumers: 5",
        "consumers: [players]",
        "consumers:\n- username: players\n",
        "consumers: [{username: players, jwt_secrets: []}]",
        "consumers: [{username: players, jwt_secrets: [{key: k1}]}]",
        f"consumers: [{{username: others, jwt_secrets: [{ROW}]}}]",
        f"consumers: [{{username: players, jwt_secrets: [{ROW.replace('RS256', 'HS256')}]}}]",
        f"consumers: [{{username: players, username: x, jwt_secrets: [{ROW}]}}]",
        "%",
        "a: [",
        "a:\t[",
        "a: !!python/object:os.system x",
        "? [a, b]\n: c",
        "&a [*a]",
        "[" * 2_000,
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{n}: &{n} [{', '.join(['*' + m] * 10)}]\n" for m, n in zip("abcd", "bcde")),  # noqa: B905
    ],
)
def test_a_file_that_was_not_rendered_is_refused(text: str) -> None:
    with pytest.raises(OperatorMistake) as refused:
        rows_in(text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_an_empty_file_has_no_keys_and_a_rendered_file_has_its_keys() -> None:
    assert rows_in("") == rows_in("\n \n") == ()
    text = f"consumers: [{{username: players, jwt_secrets: [{ROW}]}}]"
    assert rows_in(text) == (KeyRow("k1", "RS256", "PEM"),)


def test_an_invalid_file_raises_operator_mistake(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"a: \xff")
    (tmp_path / "large").write_bytes(b"#" * 2_000_000)
    for name, words in (("latin", "not UTF-8"), ("large", "larger than")):
        with pytest.raises(OperatorMistake, match=words):
            read_text(tmp_path / name)


@pytest.mark.parametrize("name", ["absent", "."])
def test_an_unreadable_file_raises_oserror_with_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError) as caught:
        read_text(tmp_path / name)

    assert Path(caught.value.filename) == tmp_path / name


# The file ---------------------------------------------------------------------------------------


def test_the_file_is_replaced_atomically_and_only_if_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "kong.yml"
    assert write_atomically(path, "one") is True
    inode = path.stat().st_ino
    assert write_atomically(path, "one") is False
    assert path.stat().st_ino == inode
    assert write_atomically(path, "two") is True
    assert (path.read_text(), path.stat().st_ino != inode) == ("two", True)
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kong.yml"
    path.write_text("old")

    def fail(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
