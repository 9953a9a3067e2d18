"""`scoreboard config`: the settings, and a check of the servers."""

import json
from pathlib import Path

import redis

from tests.support.clients.commands import Run


def test_secrets_are_masked_and_sources_are_shown(command: Run, monkeypatch) -> None:
    monkeypatch.setenv("SCOREBOARD_API_PORT", "8123")

    shown = command("config", "show")

    lines = shown.out.splitlines()
    assert "REDIS_URL\t***\tenvironment" in lines
    assert "SCOREBOARD_API_PORT\t8123\tenvironment" in lines
    assert "SCOREBOARD_WS_PORT\t8001\tdefault" in lines
    changed = json.loads(command("config", "show", "--changed", "--json").out)
    assert [one["variable"] for one in changed] == [
        "REDIS_URL",
        "DATABASE_URL",
        "SCOREBOARD_API_PORT",
    ]


def test_a_service_link_is_not_shown_as_a_setting(command: Run, monkeypatch) -> None:
    monkeypatch.setenv("SCOREBOARD_API_PORT", "tcp://10.0.0.1:8000")

    assert "SCOREBOARD_API_PORT\t8000\tdefault" in command("config", "show").out


def test_an_unknown_setting_is_named(command: Run, monkeypatch) -> None:
    monkeypatch.setenv("SCOREBOARD_APIPORT", "8123")

    done = command("config", "show")

    assert done.code == 1
    assert "SCOREBOARD_APIPORT" in done.err


def test_config_check_reports_ok_and_problems(
    command: Run, redis_url: str, jwks_file: Path, monkeypatch
) -> None:
    monkeypatch.setenv("SCOREBOARD_JWKS_FILE", str(jwks_file))
    assert command("board", "create", "main").code == 0
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    closed = command("config", "check")
    assert closed.code == 1
    assert "board main\tnot loaded: scoreboard reseed --board main" in closed.out
    assert command("reseed").code == 0

    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            unsafe = command("config", "check")
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    lines = command("config", "check").out.splitlines()

    assert "redis\tmaxmemory-policy is allkeys-lru, must be noeviction" in unsafe.out
    assert {"redis\tok", "board main\tok", "issuer's keys\tok"} <= set(lines)


def test_config_check_reports_keys_of_proofs_that_are_missing_or_invalid(
    command: Run, jwks_file: Path, tmp_path: Path, monkeypatch
) -> None:
    assert "keys of proofs" not in command("config", "check").out
    command("action", "set", "raid", "50", "--proof")
    missing = command("config", "check")
    assert missing.code == 1
    assert "keys of proofs\tmissing; kind raid needs them" in missing.out

    invalid = tmp_path / "proof-jwks.json"
    invalid.write_text('{"keys": []}')
    monkeypatch.setenv("SCOREBOARD_PROOF_JWKS_FILE", str(invalid))
    found = command("config", "check").out
    assert "keys of proofs\tok" not in found
    assert "the key set has no RS256 or ES256 or EdDSA key with a kid" in found
    monkeypatch.setenv("SCOREBOARD_PROOF_JWKS_FILE", str(jwks_file))
    assert "keys of proofs\tok" in command("config", "check").out


def test_unreachable_servers_are_reported_without_passwords(command: Run, monkeypatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@127.0.0.1:1/x")
    monkeypatch.setenv("SCOREBOARD_JWKS_URL", "http://127.0.0.1:1/jwks.json")

    done = command("config", "check", "--json")

    assert done.code == 1
    assert "secret" not in done.out + done.err
    assert all(one["problem"] for one in json.loads(done.out))
