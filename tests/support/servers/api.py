"""The api in the process of the test, on real Redis.

    client = await start_api(rate_limit="app")
    answer = await client.post("/api/scores/update", json=..., headers=client.bearer("alice"))

It listens on a free port.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import Api, create_app
from api.server import bind, serve
from scoreboard.model import Board
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import PREFIX, Settings, load
from scoreboard.store.client import make_client
from scoreboard.store.store import Store
from tests.support.data.boards import open_board
from tests.support.fakes.tokens import AUDIENCE, ISSUER, MakeToken

UPDATE_PATH = "/api/scores/update"
LEADERBOARD_PATH = "/api/scores/leaderboard"


class ApiClient(httpx.AsyncClient):
    """An HTTP client of one api, with tokens for it."""

    api: Api
    stop: StopEvent
    served: "asyncio.Task[None]"
    port: int = 0
    make_token: MakeToken

    def bearer(self, sub: str = "alice", scope: str | None = None, **claims: Any) -> dict[str, str]:
        scope = scope or "update:score read:leaderboard"
        return {"Authorization": f"Bearer {self.make_token(sub, scope, **claims)}"}

    async def update(
        self,
        user: str = "alice",
        action: str = "win:1",
        *,
        headers: dict[str, str] | None = None,
        board: str | None = None,
        **more: Any,
    ) -> httpx.Response:
        return await self.post(
            UPDATE_PATH,
            json={"userId": user, "actionId": action} | more,
            headers=self.bearer(user) if headers is None else headers,
            params={} if board is None else {"board": board},
        )


StartApi = Callable[..., Awaitable[ApiClient]]


def api_settings(redis_url: str, jwks_file: Path | str, **more: object) -> Settings:
    """Return settings of an api; ``more`` are fields, such as ``rate_limit="app"``."""
    environ = {
        "REDIS_URL": redis_url,
        "SCOREBOARD_JWKS_FILE": str(jwks_file),
        "SCOREBOARD_ISSUER": ISSUER,
        "SCOREBOARD_AUDIENCE": AUDIENCE,
        "SCOREBOARD_RATE_LIMIT": "gateway",
        # Tests need no catalogue; the default, `refuse`, has its own tests.
        "SCOREBOARD_UNKNOWN_KINDS": "default",
        "SCOREBOARD_API_PORT": "0",
        "SCOREBOARD_API_METRICS_PORT": "0",
        "SCOREBOARD_DRAIN_NOTICE_S": "0.05",
    }
    for field, value in more.items():
        name = "DATABASE_URL" if field == "database_url" else PREFIX + field.upper()
        environ[name] = str(value)
    return load(environ)


async def open_boards(redis_url: str, *boards: Board, **options: Any) -> None:
    """Open boards on a Redis."""
    client = make_client(load({"REDIS_URL": redis_url}), name="test")
    try:
        for board in boards or (Board(),):
            await open_board(Store(client), board, **options)
    finally:
        await client.aclose()


async def list_boards(redis_url: str, *boards: Board) -> None:
    """Write boards to the list in Redis."""
    client = make_client(load({"REDIS_URL": redis_url}), name="test")
    try:
        await Store(client).write_boards(boards)
    finally:
        await client.aclose()


async def _serve(
    client: ApiClient, settings: Settings, listener: socket.socket, started: asyncio.Event
) -> None:
    async with client.api.running():
        await serve(client.api, settings, listener, client.stop, started=started.set)


@pytest.fixture
async def start_api(
    redis_url: str, jwks_file: Path, make_token: MakeToken
) -> AsyncIterator[StartApi]:
    """Return a function that starts apis; all are stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            url: str = redis_url,
            open: tuple[Board, ...] = (Board(),),  # noqa: A002 (short at its calls)
            direct: bool = True,
            **more: object,
        ) -> ApiClient:
            if open:
                await open_boards(url, *open)
            settings = api_settings(url, more.pop("jwks_file", jwks_file), **more)
            api = create_app(settings, direct=direct)
            listener = bind("127.0.0.1", 0)
            stack.callback(listener.close)
            port = listener.getsockname()[1]
            client = ApiClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30)
            client.port = port
            client.api, client.stop, client.make_token = api, StopEvent(5), make_token
            started = asyncio.Event()
            client.served = asyncio.create_task(_serve(client, settings, listener, started))
            stack.push_async_callback(_end, client)
            waiting = asyncio.create_task(started.wait())
            await asyncio.wait({waiting, client.served}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if client.served.done():
                client.served.result()
            return client

        yield start


async def _end(client: ApiClient) -> None:
    await client.aclose()
    client.stop.set()
    await asyncio.wait({client.served}, timeout=30)
    if not client.served.done():
        client.served.cancel()
    await asyncio.gather(client.served, return_exceptions=True)
