"""KongSync: the loop that keeps the gateway's keys current, with a fake Admin API."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml
from prometheus_client import generate_latest

from cli.gateway.config import GatewayOptions
from cli.gateway.keys import rows_in
from cli.gateway.sync import KongSync, LoadResult, SyncOptions
from scoreboard.http.operator_port import OperatorPort
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.resources import kong_path
from scoreboard.runtime.sockets import bind_listener
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.security.key_set import UrlSource, parse_keys
from tests.kong.admin import FakeAdmin, fake_admin
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import KeyPair

LIFE_S = 3600
OPTIONS = GatewayOptions(
    issuer="https://issuer.example/",
    audiences=("scoreboard",),
    redis_url="redis://kong@valkey-counters:6379/0",
    token_life_s=LIFE_S,
)


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sync(admin: FakeAdmin, clock: Clock, output: Path) -> KongSync:
    return make(admin, clock, output)


def make(admin: FakeAdmin, clock: Clock, output: Path, **changes: Any) -> KongSync:
    options = SyncOptions(
        output=output,
        template=(kong_path() / "kong.yml").read_text(),
        gateway=OPTIONS,
        admin_urls=(admin.url,),
    )
    options = msgspec.structs.replace(options, **changes)
    return KongSync(options, UrlSource(admin.jwks_url), clock)


async def turn(sync: KongSync) -> LoadResult:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        return await sync.turn(client)


def publish(admin: FakeAdmin, *keys: KeyPair) -> None:
    admin.jwks = json.dumps({"keys": [key.jwk for key in keys]}).encode()


def text_of(output: Path) -> str | None:
    return output.read_text() if output.exists() else None


def bytes_of(output: Path) -> bytes:
    return output.read_bytes()


def put(output: Path, data: bytes) -> None:
    output.write_bytes(data)


def remove(output: Path) -> None:
    output.unlink()


def make_folder(path: Path) -> None:
    path.mkdir()


def kids(text: str | None) -> list[str]:
    return [row.kid for row in rows_in(text or "")]


async def test_kong_gets_the_content_of_the_file_with_check_hash(
    sync: KongSync, admin: FakeAdmin, output: Path
) -> None:
    assert await turn(sync) is LoadResult.LOADED
    ((path, text),) = admin.posted
    assert path == "/config?check_hash=1"
    assert text == text_of(output)
    assert yaml.safe_load(text)["_format_version"] == "3.0"
    assert kids(text) == ["test-ec", "test-rsa"]


async def test_a_second_turn_does_not_change_the_configuration(
    sync: KongSync, admin: FakeAdmin
) -> None:
    await turn(sync)
    assert await turn(sync) is LoadResult.UNCHANGED
    assert admin.posted[0] == admin.posted[1]


@pytest.mark.parametrize(("status", "answer"), [(400, LoadResult.REFUSED), (413, LoadResult.FULL)])
async def test_a_refused_configuration_is_not_written_to_the_file(
    *,
    sync: KongSync,
    admin: FakeAdmin,
    output: Path,
    rsa_key: KeyPair,
    status: int,
    answer: LoadResult,
) -> None:
    await turn(sync)
    good = text_of(output)
    publish(admin, rsa_key)
    admin.answers.append(status)
    assert await turn(sync) is answer
    assert text_of(output) == good
    assert await turn(sync) is LoadResult.LOADED
    assert text_of(output) != good


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (429, LoadResult.BUSY),
        (503, LoadResult.AWAY),
        (504, LoadResult.AWAY),
        (500, LoadResult.AWAY),
    ],
)
async def test_the_file_is_written_while_kong_is_unavailable(
    sync: KongSync, admin: FakeAdmin, output: Path, status: int, answer: LoadResult
) -> None:
    admin.answers.append(status)
    assert await turn(sync) is answer
    assert kids(text_of(output)) == ["test-ec", "test-rsa"]
    assert await turn(sync) is LoadResult.LOADED


async def test_an_unreachable_kong_is_reported_as_away(
    admin: FakeAdmin, clock: Clock, output: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        unused = f"http://127.0.0.1:{taken.getsockname()[1]}"
        sync = make(admin, clock, output, admin_urls=(unused,))
        assert await turn(sync) is LoadResult.AWAY
    assert text_of(output)


async def test_every_node_gets_the_configuration(
    admin: FakeAdmin, clock: Clock, output: Path
) -> None:
    with fake_admin() as second:
        sync = make(admin, clock, output, admin_urls=(admin.url, second.url))
        second.answers.append(503)
        assert await turn(sync) is LoadResult.AWAY
        assert await turn(sync) is LoadResult.LOADED
        assert admin.held == second.held == text_of(output)


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (200, b'{"keys":[]}'),
        (200, b"<html>"),
        (200, b""),
        (200, b'{"keys":[{"kty":"oct","kid":"k","k":"c2VjcmV0"}]}'),
        (200, b'{"keys":[]}' + b" " * 70_000),
        (500, b'{"keys":[]}'),
        (302, b""),
    ],
)
async def test_an_invalid_key_set_does_not_change_the_configuration(
    sync: KongSync, admin: FakeAdmin, output: Path, status: int, document: bytes
) -> None:
    await turn(sync)
    good = text_of(output)
    admin.jwks, admin.jwks_status = document, status
    assert await turn(sync) is LoadResult.NO_KEYS
    assert text_of(output) == good
    # A restarted Kong still gets the last valid configuration.
    assert admin.posted[-1][1] == good


async def test_without_a_key_set_nothing_is_written_or_sent(
    sync: KongSync, admin: FakeAdmin, output: Path
) -> None:
    admin.jwks = b'{"keys":[]}'
    assert await turn(sync) is LoadResult.NO_KEYS
    assert text_of(output) is None
    assert admin.posted == []


async def test_an_empty_file_is_replaced(sync: KongSync, admin: FakeAdmin, output: Path) -> None:
    put(output, b"")
    assert await turn(sync) is LoadResult.LOADED
    assert kids(text_of(output)) == ["test-ec", "test-rsa"]
    assert text_of(output) == admin.held


@pytest.mark.parametrize("text", [b"- a list", b"a word", b"services: 5", b"\xff", b"a: 1\na: 2"])
async def test_another_file_is_not_replaced_and_does_not_end_the_loop(
    sync: KongSync, admin: FakeAdmin, output: Path, text: bytes
) -> None:
    await turn(sync)
    put(output, text)
    assert await turn(sync) is LoadResult.NO_FILE
    assert bytes_of(output) == text
    assert len(admin.posted) == 1
    remove(output)
    assert (await turn(sync)).is_good
    assert kids(text_of(output)) == ["test-ec", "test-rsa"]


async def test_a_failed_write_is_repeated(admin: FakeAdmin, clock: Clock, tmp_path: Path) -> None:
    output = tmp_path / "config" / "kong.yml"
    sync = make(admin, clock, output)
    assert await turn(sync) is LoadResult.NO_FILE
    assert sync.state()[0] is False
    make_folder(output.parent)
    assert (await turn(sync)).is_good
    assert text_of(output) == admin.held


async def test_a_folder_instead_of_the_file_does_not_end_the_loop(
    sync: KongSync, output: Path
) -> None:
    make_folder(output)
    assert await turn(sync) is LoadResult.NO_FILE


async def test_unusable_keys_do_not_affect_others(
    sync: KongSync, admin: FakeAdmin, rsa_key: KeyPair, ec_key: KeyPair
) -> None:
    half = {name: value for name, value in ec_key.jwk.items() if name != "y"}
    only_x5c = {"kty": "RSA", "kid": "x5c", "x5c": ["MIIB"]}
    unusable = [half, only_x5c, {"kty": 5}, "a word", {**ec_key.jwk, "kid": "a b"}]
    admin.jwks = json.dumps({"keys": [*unusable, rsa_key.jwk]}).encode()
    assert await turn(sync) is LoadResult.LOADED
    assert kids(admin.held) == ["test-rsa"]


async def test_two_keys_with_one_kid_are_ignored_as_in_the_services(
    sync: KongSync, admin: FakeAdmin, rsa_key: KeyPair, ec_key: KeyPair
) -> None:
    other = {**ec_key.jwk, "kid": "other"}
    admin.jwks = json.dumps(
        {"keys": [rsa_key.jwk, {**ec_key.jwk, "kid": rsa_key.kid}, other]}
    ).encode()
    await turn(sync)
    assert kids(admin.held) == ["other"]
    assert sorted(parse_keys(admin.jwks)) == ["other"]


async def test_a_rotated_key_is_kept_for_the_lifetime_of_a_token(
    sync: KongSync, admin: FakeAdmin, clock: Clock, rsa_key: KeyPair, ec_key: KeyPair
) -> None:
    publish(admin, rsa_key)
    await turn(sync)
    publish(admin, ec_key)
    await turn(sync)
    assert kids(admin.held) == ["test-ec", "test-rsa"]
    clock.now_s += LIFE_S - 1
    assert await turn(sync) is LoadResult.UNCHANGED
    clock.now_s += 1
    assert await turn(sync) is LoadResult.LOADED
    assert kids(admin.held) == ["test-ec"]


async def test_the_grace_period_continues_after_a_restart(
    *,
    sync: KongSync,
    admin: FakeAdmin,
    clock: Clock,
    output: Path,
    rsa_key: KeyPair,
    ec_key: KeyPair,
) -> None:
    publish(admin, rsa_key)
    await turn(sync)
    publish(admin, ec_key)
    await turn(sync)
    clock.now_s += LIFE_S - 1
    after_restart = make(admin, clock, output)
    assert await turn(after_restart) is LoadResult.UNCHANGED
    clock.now_s += 1
    await turn(after_restart)
    assert kids(admin.held) == ["test-ec"]


async def test_a_removed_key_expires_while_the_issuer_is_unavailable(
    sync: KongSync, admin: FakeAdmin, clock: Clock, rsa_key: KeyPair, ec_key: KeyPair
) -> None:
    publish(admin, rsa_key)
    await turn(sync)
    publish(admin, ec_key)
    await turn(sync)
    admin.jwks_status = 503
    clock.now_s += LIFE_S
    assert await turn(sync) is LoadResult.NO_KEYS
    assert kids(admin.held) == ["test-ec"]


async def test_a_revoked_key_is_removed_at_once(
    sync: KongSync, admin: FakeAdmin, clock: Clock, output: Path
) -> None:
    await turn(sync)
    await turn(make(admin, clock, output, revoked=frozenset({"test-rsa"})))
    assert kids(admin.held) == ["test-ec"]


async def test_revoking_the_last_key_is_refused(
    admin: FakeAdmin, clock: Clock, output: Path, rsa_key: KeyPair
) -> None:
    publish(admin, rsa_key)
    sync = make(admin, clock, output, revoked=frozenset({"test-rsa"}))
    assert await turn(sync) is LoadResult.NO_KEYS
    assert admin.posted == []


async def test_the_loop_retries_and_ends_on_stop(
    admin: FakeAdmin, clock: Clock, output: Path
) -> None:
    sync = make(admin, clock, output, interval_s=0.05)
    admin.answers.append(429)
    stop = StopEvent(5)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(sync.serve(stop))
        await eventually_async(lambda: len(admin.posted) >= 3)
        stop.set()
    assert admin.held == text_of(output)


class HangingSource:
    """A source of keys whose read does not end."""

    async def read(self) -> bytes:
        await asyncio.Event().wait()
        return b""


async def test_a_turn_that_hangs_is_cancelled_at_its_timeout(
    clock: Clock, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.gateway.sync.TURN_TIMEOUT_S", 0.05)
    options = SyncOptions(output=output, template="", gateway=OPTIONS)

    assert await turn(KongSync(options, HangingSource(), clock)) is LoadResult.AWAY


# Health and metrics -----------------------------------------------------------------------------


async def test_readiness_requires_a_recent_successful_turn(
    sync: KongSync, admin: FakeAdmin, clock: Clock
) -> None:
    assert sync.state()[0] is False
    admin.answers.append(503)
    await turn(sync)
    assert sync.state()[0] is False
    await turn(sync)
    assert sync.state()[0] is True
    clock.now_s += 3 * 300
    assert sync.state()[0] is False


async def test_probes_and_metrics_are_served_on_one_port(sync: KongSync) -> None:
    listener = bind_listener("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with (
        OperatorPort(listener, sync.state),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        assert (await client.get("/health/ready")).status_code == 503
        await turn(sync)
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert (await client.get("/health/live?x=1")).status_code == 200
        assert (await client.get("/other")).status_code == 404
        metrics = (await client.get("/metrics")).text
    assert 'scoreboard_kong_sync_turns_total{result="loaded"}' in metrics


async def test_metrics_have_turns_keys_and_the_last_success(
    sync: KongSync, admin: FakeAdmin, clock: Clock, rsa_key: KeyPair
) -> None:
    before = REGISTRY.get_sample_value("scoreboard_kong_sync_turns_total", {"result": "busy"}) or 0
    admin.answers.append(429)
    await turn(sync)
    publish(admin, rsa_key)
    await turn(sync)
    text = generate_latest(REGISTRY).decode()
    assert f'kong_sync_turns_total{{result="busy"}} {before + 1}' in text
    assert 'kong_sync_keys{state="current"} 1.0' in text
    assert 'kong_sync_keys{state="retired"} 1.0' in text
    assert f"last_success_timestamp_seconds {clock.now_s}" in text.replace(
        "1.8e+09", "1800000000.0"
    )
