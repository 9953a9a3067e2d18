"""Rotation of the development issuer's signing key and client secret, while everything runs."""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from cli.embedded.ports import find_free_port
from cli.issuer.config import SECRET_FILE, make_client_secret
from scoreboard.model import Board
from scoreboard.runtime.settings import Secret
from scoreboard.security.key_rollout import accepts_key, is_published, settle_s
from scoreboard.security.key_set import FORCED_REFRESH_S, REFRESH_S, FileSource, Source, UrlSource
from scoreboard.security.local_issuer import KEY_FILE, make_signing_key
from scoreboard.security.tokens import READ, LocalIssuer
from tests.support.clients.forked import Forked
from tests.support.clients.viewer import RawViewer, StartStreamer, request_bytes
from tests.support.eventually import eventually, eventually_async
from tests.support.servers.api import LEADERBOARD_PATH, ApiClient, StartApi

PRIVATE = Board(is_public=False)
ROTATIONS = 5


class Versions:
    """The files of a secret, changed as a rotation changes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending = path.with_name(f"{path.name}.pending")
        self.previous = path.with_name(f"{path.name}.previous")

    def put(self, secret: Secret) -> None:
        draft = self.path.with_name(".draft")
        draft.touch(0o600)
        draft.write_text(secret.reveal())
        draft.replace(self.pending)

    def link_previous(self) -> None:
        self.previous.unlink(missing_ok=True)
        self.previous.hardlink_to(self.path)

    def promote(self) -> None:
        self.link_previous()
        self.pending.replace(self.path)

    def retire(self) -> None:
        self.previous.unlink()


class Process:
    """`python -m cli.issuer`, stopped when the test ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.jwks_url = f"{self.url}/jwks.json"
        self.log = folder.parent / "issuer.log"
        words = ["--folder", str(folder), "--port", str(self.port)]
        words += ["--redirect-uri", "http://127.0.0.1:8000/"]
        with self.log.open("wb") as log:
            self.running = Forked("cli.issuer", words, os.environ, output=log)
        try:
            eventually(self.is_up)
        except AssertionError:
            self.stop()
            raise

    def is_up(self) -> bool:
        try:
            return httpx.get(self.jwks_url, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def kids(self) -> list[str]:
        document = httpx.get(self.jwks_url, trust_env=False).json()
        return [key["kid"] for key in document["keys"]]

    def kids_of_file(self) -> list[str]:
        return [key["kid"] for key in json.loads((self.folder / "jwks.json").read_text())["keys"]]

    def stop(self) -> None:
        self.running.kill()
        self.running.wait()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path / "identity")
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def issuer(process: Process) -> LocalIssuer:
    """A second process that signs, such as `scoreboard token`."""
    return LocalIssuer.load(process.folder)


@pytest.fixture
def keys(process: Process) -> Versions:
    return Versions(process.folder / KEY_FILE)


async def api_status(api: ApiClient, token: str) -> int:
    answer = await api.get(LEADERBOARD_PATH, headers={"Authorization": f"Bearer {token}"})
    return answer.status_code


async def streamer_status(port: int, token: str) -> int:
    viewer = await RawViewer.open(port)
    try:
        await viewer.send(request_bytes(token=token))
        return (await viewer.answer()).status
    finally:
        viewer.close()


# --- the signing key ---


def test_the_running_issuer_follows_the_files_and_signs_with_the_current_key(
    process: Process, issuer: LocalIssuer, keys: Versions
) -> None:
    (old,) = process.kids()
    keys.put(make_signing_key())
    started_s = time.monotonic()
    eventually(lambda: len(process.kids_of_file()) == 2)
    print(f"jwks.json followed after {time.monotonic() - started_s:.2f} s")  # noqa: T201 (a measurement)
    assert issuer.keys.pending is not None
    new = issuer.keys.pending.kid
    assert process.kids() == process.kids_of_file() == [old, new]
    assert issuer.keys.current.kid == old

    keys.promote()
    assert process.kids() == [new, old]  # at the next request
    assert issuer.keys.current.kid == new
    eventually(lambda: process.kids_of_file() == [new, old])

    keys.retire()
    assert process.kids() == [new]
    eventually(lambda: process.kids_of_file() == [new])
    log = process.log.read_text()
    assert new in log
    assert "PRIVATE KEY" not in log


def test_every_state_of_an_interrupted_rotation_is_a_valid_key_set(
    process: Process, issuer: LocalIssuer, keys: Versions
) -> None:
    (old,) = process.kids()
    keys.put(make_signing_key())
    assert issuer.keys.pending is not None
    new = issuer.keys.pending.kid
    keys.link_previous()  # and then killed: current and previous are the same file
    assert process.kids() == [old, new]
    assert LocalIssuer.load(process.folder).keys.current.kid == old
    keys.promote()
    assert sorted(process.kids()) == sorted([old, new])


@pytest.mark.parametrize("content", ["", "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_key_of_wrong_shape_does_not_replace_the_one_in_use(
    process: Process, issuer: LocalIssuer, keys: Versions, content: str
) -> None:
    before = process.kids()
    keys.put(Secret(content))
    assert process.kids() == before  # as a pending version it is left out
    keys.promote()
    assert process.kids() == before
    assert issuer.keys.current.kid == before[0]
    eventually(lambda: "secret_file_unusable" in process.log.read_text())
    keys.put(make_signing_key())
    keys.promote()
    assert process.kids() != before


def test_a_key_that_others_can_read_is_left_out(process: Process, keys: Versions) -> None:
    keys.put(make_signing_key())
    keys.pending.chmod(0o644)
    assert len(process.kids()) == 1
    keys.pending.chmod(0o600)
    assert len(process.kids()) == 2


@pytest.fixture
async def services(
    process: Process, start_api: StartApi, start_streamer: StartStreamer
) -> tuple[ApiClient, int]:
    """An api that reads the key set from its file, and a streamer that reads it from its URL."""
    api = await start_api(
        open=(), jwks_file=process.folder / "jwks.json", issuer=process.url, audience="scoreboard"
    )
    streamer = await start_streamer(
        board=PRIVATE,
        jwks_file="",
        jwks_url=process.jwks_url,
        issuer=process.url,
        audience="scoreboard",
    )
    await eventually_async(lambda: streamer.streamer.verifier.is_ready)
    return api, streamer.port


async def test_five_rotations_under_load_refuse_no_token(
    process: Process,
    issuer: LocalIssuer,
    keys: Versions,
    services: tuple[ApiClient, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api, port = services
    # Otherwise each rotation would wait 30 s until the streamer may read the key set again.
    monkeypatch.setattr(UrlSource, "forced_check_s", 0.5)
    counts: Counter[tuple[str, int]] = Counter()
    kids: set[str] = set()

    async def load() -> None:
        held: list[str] = []
        while True:
            held.append(issuer.issue("alice", [READ], 600))
            kids.add(issuer.keys.current.kid)
            for token in {held[0], held[-1]}:  # the oldest, of the previous key, and the newest
                counts["api", await api_status(api, token)] += 1
                counts["streamer", await streamer_status(port, token)] += 1
            del held[:-20]
            await asyncio.sleep(0.01)  # pace: the load, up to a hundred rounds a second

    async def is_pending_published(source: Source) -> bool:
        assert issuer.keys.pending is not None
        return await is_published(source, issuer.keys.pending)

    async def knows(url: str) -> bool:
        assert issuer.keys.pending is not None
        return await accepts_key(url, issuer, issuer.keys.pending, READ)

    running = asyncio.create_task(load())
    try:
        for _ in range(ROTATIONS):
            keys.put(make_signing_key())
            await eventually_async(lambda: is_pending_published(FileSource(issuer.jwks_file)))
            await eventually_async(lambda: is_pending_published(UrlSource(process.jwks_url)))
            await eventually_async(lambda: knows(f"http://127.0.0.1:{api.port}{LEADERBOARD_PATH}"))
            await eventually_async(lambda: knows(f"ws://127.0.0.1:{port}/ws/scoreboard"))
            keys.promote()
            seen = sum(counts.values())
            await eventually_async(lambda n=seen: sum(counts.values()) > n + 100)
            assert not running.done()
            keys.retire()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    print(f"{ROTATIONS} rotations, {len(kids)} keys: {dict(counts)}")  # noqa: T201 (a measurement)
    assert len(kids) == ROTATIONS + 1
    assert set(counts) == {("api", 200), ("streamer", 101)}


async def test_the_previous_key_is_accepted_until_it_is_removed(
    issuer: LocalIssuer, keys: Versions, services: tuple[ApiClient, int]
) -> None:
    api, port = services
    token = issuer.issue("alice", [READ], 600)
    keys.put(make_signing_key())
    issuer.publish()
    keys.promote()
    issuer.publish()
    assert (await api_status(api, token), await streamer_status(port, token)) == (200, 101)
    keys.retire()
    issuer.publish()
    # The api reads the file every 2 s; the streamer reads the URL for the next unknown key.
    new = issuer.issue("alice", [READ], 600)
    assert await streamer_status(port, new) == 101
    assert await streamer_status(port, token) == 401

    async def is_refused() -> bool:
        return await api_status(api, token) == 401

    await eventually_async(is_refused)


async def test_without_waiting_a_new_key_is_accepted_once_and_then_refused_for_a_while(
    issuer: LocalIssuer, keys: Versions, services: tuple[ApiClient, int]
) -> None:
    """The reason for the order of the steps: a service reads the URL at most every 30 s."""
    _, port = services
    answers: list[int] = []
    for _ in range(2):
        keys.put(make_signing_key())
        keys.promote()
        answers.append(await streamer_status(port, issuer.issue("alice", [READ], 600)))
    assert answers == [101, 401]


async def test_questions_about_a_key_are_answered(
    process: Process, issuer: LocalIssuer, keys: Versions, tmp_path: Path
) -> None:
    current = issuer.keys.current
    assert await is_published(UrlSource(process.jwks_url), current)
    assert not await is_published(FileSource(tmp_path / "missing"), current)
    assert not await is_published(UrlSource("http://127.0.0.1:9/jwks.json"), current)
    keys.put(make_signing_key())
    other = LocalIssuer.create(tmp_path / "other").keys.current
    assert not await is_published(UrlSource(process.jwks_url), other)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        await accepts_key("http://127.0.0.1:9/", issuer, current, READ)
    assert settle_s(UrlSource(process.jwks_url)) > REFRESH_S > FORCED_REFRESH_S
    assert "PRIVATE" not in repr(current)


# --- the client secret ---


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        yield client


async def test_game_servers_get_tokens_with_every_version_of_their_secret(
    process: Process, http: httpx.AsyncClient
) -> None:
    secrets = Versions(process.folder / SECRET_FILE)
    counts: Counter[int] = Counter()
    planted = [secrets.path.read_text()]

    async def status(secret: str) -> int:
        answer = await http.post(
            f"{process.url}/token",
            data={"grant_type": "client_credentials"},
            auth=("game-server", secret),
        )
        assert not secret or secret not in answer.text
        return answer.status_code

    async def load() -> None:
        while True:
            counts[await status(secrets.path.read_text())] += 1

    running = asyncio.create_task(load())
    try:
        for _ in range(ROTATIONS):
            old, new = planted[-1], make_client_secret().reveal()
            planted.append(new)
            assert await status(new) == 401
            secrets.put(Secret(new))
            assert (await status(old), await status(new)) == (200, 200)
            secrets.promote()
            assert (await status(old), await status(new)) == (200, 200)
            # Until no request with the old one is under way.
            seen = counts.total()
            await eventually_async(lambda n=seen: counts.total() > n + 1)
            secrets.retire()
            assert (await status(old), await status(new)) == (401, 200)
            assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    print(f"{ROTATIONS} rotations of the client secret: {dict(counts)}")  # noqa: T201 (a measurement)
    assert set(counts) == {200}
    assert await status("x" * 43) == await status("") == 401
    secrets.put(Secret("short"))
    secrets.promote()
    assert (await status("short"), await status(planted[-1])) == (401, 200)
    log = process.log.read_text()
    assert "grant_refused" in log
    assert "contains no valid secret" in log
    assert [secret for secret in planted if secret in log] == []
