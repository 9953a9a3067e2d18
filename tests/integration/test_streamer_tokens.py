"""Tokens: verification, expiry warning, renewal, expiry, and their absence from logs."""

import asyncio
import logging
import time
from typing import Any

import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from scoreboard.model import Board, Partition
from scoreboard.runtime.telemetry import REGISTRY, setup_logging
from scoreboard.security.key_set import WAITING_MAX
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from tests.support.clients.issuer import serving_keys
from tests.support.clients.viewer import Connect, RawViewer, StartStreamer, request_bytes
from tests.support.eventually import eventually_async
from tests.support.fakes.tokens import KeyPair, MakeToken

PRIVATE = Board(is_public=False)


async def status_of(port: int, **request: Any) -> int:
    viewer = await RawViewer.open(port)
    try:
        await viewer.send(request_bytes(**request))
        return (await viewer.answer()).status
    finally:
        viewer.close()


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.test/"},
        {"aud": "other"},
        {"nbf": time.time() + 3600},
        {"sub": "two words"},
        {"sub": None},
        {"exp": None},
        {"headers": {"kid": "unknown"}},
    ],
    ids=lambda claims: next(iter(claims)) + (" missing" if None in claims.values() else ""),
)
async def test_invalid_token_returns_401_on_a_public_board_too(
    start_streamer: StartStreamer, make_token: MakeToken, claims: dict[str, Any]
) -> None:
    running = await start_streamer()

    assert await status_of(running.port, token=make_token(**claims)) == 401


async def test_unknown_kids_do_not_block_others_while_the_issuer_hangs(
    start_streamer: StartStreamer, make_token: MakeToken, jwks: dict[str, Any]
) -> None:
    async with serving_keys(jwks) as keys:
        running = await start_streamer(board=PRIVATE, jwks_file="", jwks_url=keys.url)
        await eventually_async(lambda: running.streamer.verifier.is_ready)
        keys.answers.clear()
        unknown = [
            asyncio.ensure_future(
                status_of(running.port, token=make_token(headers={"kid": f"who-{number}"}))
            )
            for number in range(60)
        ]
        await eventually_async(lambda: sum(one.done() for one in unknown) == 60 - WAITING_MAX)

        assert await status_of(running.port, token=make_token()) == 101
        assert {one.result() for one in unknown if one.done()} == {503}
        keys.answers.set()
        assert (await asyncio.gather(*unknown)).count(401) == WAITING_MAX
        assert keys.requests == 2


async def test_unsigned_and_algorithm_confused_tokens_return_401(
    start_streamer: StartStreamer, make_token: MakeToken, rsa_key: KeyPair
) -> None:
    running = await start_streamer()
    head, body, signature = make_token().split(".")
    none = "eyJhbGciOiJub25lIiwia2lkIjoidGVzdC1yc2EifQ"

    assert await status_of(running.port, token=f"{none}.{body}.") == 401
    assert await status_of(running.port, token=f"{head}.{body}.{signature[:-4]}AAAA") == 401
    assert await status_of(running.port, token="x" * 4500) == 401
    assert await status_of(running.port, token="x" * 20_000) == 431


async def test_clock_skew_within_the_leeway_is_accepted(
    start_streamer: StartStreamer, make_token: MakeToken
) -> None:
    running = await start_streamer(board=PRIVATE, token_leeway_s=30)

    assert await status_of(running.port, token=make_token(nbf=time.time() + 20)) == 101


async def test_expired_token_closes_with_4401_a_limited_number_of_times(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(board=PRIVATE, expired_per_minute=2)
    expired = make_token(exp=time.time() - 3600)
    for _ in range(2):
        viewer = await connect(running.port, token=expired)

        assert await viewer.closed() == 4401
        assert [message["type"] for message in viewer.messages] == ["bye"]
        viewer.close()

    assert await status_of(running.port, token=expired) == 401
    await running.wait_until_empty()


async def test_one_token_can_connect_to_many_processes(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    token = make_token()
    first = await start_streamer(board=PRIVATE)
    second = await start_streamer(opened=False)
    await eventually_async(lambda: second.streamer.watcher.is_ready)

    for running in (first, second):
        viewer = await connect(running.port, token=token)
        assert (await viewer.next())["type"] == "leaderboard"


async def test_expiring_token_is_announced_then_closes_with_4401(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(board=PRIVATE, token_warning_s=1.2, token_grace_s=0.4)
    exp = int(time.time()) + 2
    viewer = await connect(running.port, token=make_token(exp=exp))

    warning = await viewer.next("auth_expiring")
    assert warning == {"type": "auth_expiring", "exp": exp, "grace_ms": 400}
    assert time.time() < exp

    assert await viewer.closed() == 4401
    assert time.time() >= exp + 0.4
    assert viewer.messages[-1]["type"] == "bye"
    viewer.close()
    await running.wait_until_empty()


async def test_renewed_token_keeps_the_connection_and_the_reply_has_its_expiry(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(board=PRIVATE, token_warning_s=1.5, token_grace_s=0.3)
    viewer = await connect(running.port, token=make_token(exp=int(time.time()) + 2))
    await viewer.next("auth_expiring")
    later = int(time.time()) + 600

    await viewer.send_json({"type": "auth", "token": make_token(exp=later)})

    assert (await viewer.next("heartbeat"))["exp"] == later
    await eventually_async(lambda: time.time() > viewer_end(viewer) + 0.5)
    assert running.viewers == 1


def viewer_end(viewer: RawViewer) -> int:
    warning = next(one for one in viewer.messages if one["type"] == "auth_expiring")
    return warning["exp"]


@pytest.mark.parametrize(
    "claims", [{"sub": "bob"}, {"scope": "update:score"}], ids=["other user", "scope lost"]
)
async def test_renewal_for_another_user_or_scope_closes_with_4403(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken, claims: dict[str, Any]
) -> None:
    running = await start_streamer(board=PRIVATE)
    viewer = await connect(running.port, token=make_token("alice", exp=time.time() + 100))
    renewal = {"sub": "alice", "exp": time.time() + 200} | claims

    await viewer.send_json({"type": "auth", "token": make_token(**renewal)})

    assert await viewer.closed() == 4403


@pytest.mark.parametrize(
    ("renewal", "code"),
    [("nonsense", "unauthenticated"), ("earlier", "malformed"), ("expired", "unauthenticated")],
)
async def test_rejected_renewal_is_an_error_and_the_old_token_stays_valid(
    start_streamer: StartStreamer,
    connect: Connect,
    make_token: MakeToken,
    renewal: str,
    code: str,
) -> None:
    running = await start_streamer(board=PRIVATE)
    viewer = await connect(running.port, token=make_token(exp=time.time() + 100))
    tokens = {
        "nonsense": "a.b.c",
        "earlier": make_token(exp=time.time() + 90),
        "expired": make_token(exp=time.time() - 90),
    }

    await viewer.send_json({"type": "auth", "token": tokens[renewal]})

    assert (await viewer.next("error"))["code"] == code
    await viewer.send_json({"type": "sync"})
    assert (await viewer.next("leaderboard"))["epoch"] == 1


async def test_anonymous_viewer_cannot_renew(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer()
    viewer = await connect(running.port)

    await viewer.send_json({"type": "auth", "token": make_token()})

    assert (await viewer.next("error"))["code"] == "no-token"


async def test_board_that_becomes_private_closes_viewers_without_the_scope(
    start_streamer: StartStreamer,
    connect: Connect,
    make_token: MakeToken,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 0.2)
    running = await start_streamer()
    anonymous = await connect(running.port)
    allowed = await connect(running.port, token=make_token())
    await allowed.next("leaderboard")
    client = make_client(running.settings, name="test")
    await client.hset(PartitionKeys(Partition("main")).meta, "public", "0")
    await client.aclose()

    assert await anonymous.closed() == 4403
    await allowed.send_json({"type": "sync"})
    assert (await allowed.next("leaderboard"))["board"] == "main"
    assert await status_of(running.port) == 401


async def test_wall_clock_jump_neither_ends_nor_extends_a_token(
    start_streamer: StartStreamer,
    connect: Connect,
    make_token: MakeToken,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = await start_streamer(board=PRIVATE, token_warning_s=0.5, token_grace_s=0.2)
    lasting = await connect(running.port, token=make_token("alice", exp=time.time() + 600))
    ending = await connect(running.port, token=make_token("bob", exp=int(time.time()) + 2))
    real = time.time

    monkeypatch.setattr("streamer.fanout.manager.time.time", lambda: real() + 3600)
    monkeypatch.setattr(
        "scoreboard.broadcast.messages.time.time_ns", lambda: int((real() + 3600) * 1e9)
    )

    assert await ending.closed() == 4401
    await lasting.send_json({"type": "sync"})
    assert (await lasting.next("leaderboard"))["board"] == "main"


async def test_tokens_and_queries_are_not_in_logs_metrics_or_responses(
    start_streamer: StartStreamer,
    connect: Connect,
    make_token: MakeToken,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers = logging.getLogger().handlers[:]
    level = logging.getLogger().level
    setup_logging("streamer", level="debug", form="json", environment="test")
    logging.getLogger().addHandler(caplog.handler)
    try:
        running = await start_streamer(board=PRIVATE)
        good, bad = make_token("alice", exp=time.time() + 100), make_token("alice", aud="other")
        viewer = await connect(running.port, token=good)
        await viewer.next()
        await viewer.send_json({"type": "auth", "token": bad})
        await viewer.next("error")
        refused = await RawViewer.open(running.port)
        await refused.send(request_bytes(subprotocols=f"scoreboard.v1, bearer.{bad}"))
        body = (await refused.answer()).body.decode()
        refused.close()
        asking = await RawViewer.open(running.port)
        await asking.send(request_bytes("/ws/scoreboard?secret=hidden-value"))
        body += (await asking.answer()).body.decode()
        asking.close()
    finally:
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)

    output = "".join(
        [caplog.text, *capsys.readouterr(), body, generate_latest(REGISTRY).decode()]
        + [str(message) for message in viewer.messages]
    )
    for secret in (good, bad, good.split(".")[1], bad.split(".")[2], "hidden-value"):
        assert secret not in output
    assert "alice" not in generate_latest(REGISTRY).decode()


class VerifierError(Exception):
    """An error that the verifier is not meant to raise."""


async def test_unexpected_error_in_token_check_closes_only_that_viewer_with_1011(
    start_streamer: StartStreamer,
    connect: Connect,
    make_token: MakeToken,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Incident: the error cancelled the task group of the streamer, and with it every viewer.
    running = await start_streamer()
    other = await connect(running.port)
    renewing = await connect(running.port, token=make_token())

    async def verify(token: str) -> None:
        raise VerifierError

    monkeypatch.setattr(running.streamer.verifier, "verify", verify)
    with capture_logs() as lines:
        await renewing.send_json({"type": "auth", "token": make_token()})
        joining = await connect(running.port, token=make_token())

        assert await renewing.closed() == 1011
        assert renewing.messages[-1]["type"] == "bye"
        assert await joining.closed() == 1011

    logged = [line for line in lines if line["event"] == "token_check_failed"]
    assert [type(line["exc_info"]) for line in logged] == [VerifierError, VerifierError]
    await other.send_json({"type": "sync"})
    assert (await other.next("leaderboard"))["board"] == "main"
    joining.close()
    renewing.close()
    await eventually_async(lambda: running.viewers == 1)
