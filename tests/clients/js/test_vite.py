"""The tutorial with Vite: a fresh project, from the page's own blocks and the packed package."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, expect

from cli.embedded.ports import find_free_port
from tests.clients.js.package_folder import HERE, Package
from tests.documents.snippets import run_page, snippets_of
from tests.documents.test_snippets import checkout, environment_of, replaced
from tests.support.clients import npm
from tests.support.eventually import eventually_async
from tests.support.repository import ROOT
from tests.support.servers.system import System

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
TIMEOUT_MS = 45_000


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Return a running system, which allows no other origins."""
    with System(tmp_path_factory.mktemp("vite") / "system") as made:
        yield made


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a reader with Node and npm, and without a network."""
    programs = tmp_path_factory.mktemp("programs")
    npm_program = programs / "npm"
    npm_program.write_text(f'#!/bin/sh\nexec "{npm.NODE}/bin/node" "{npm.NPM}" "$@"\n')
    npm_program.chmod(0o755)
    made = environment_of(programs)
    return made | {
        "PATH": f"{programs}:{made['PATH']}",
        "npm_config_offline": "true",
        "npm_config_audit": "false",
        "npm_config_fund": "false",
    }


@pytest.fixture(scope="module")
def project(
    package: Package,
    running: System,
    environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the project that the page's blocks make."""
    folder = checkout(tmp_path_factory.mktemp("reader") / "scoreboard")
    (folder / "dist").unlink(missing_ok=True)
    (folder / "dist").mkdir()
    shutil.copy(package.packed, folder / "dist")
    made = folder / "my-board"
    made.mkdir()
    # What a registry would answer: Vite and TypeScript, in the versions of the lock.
    shutil.copyfile(HERE / "package-lock.json", made / "package-lock.json")
    shutil.copytree(HERE / "node_modules", made / "node_modules", symlinks=True)
    snippets = snippets_of((ROOT / "docs/tutorial/vite.md").read_text())
    addresses = {
        "http://127.0.0.1:8000": running.api,
        "ws://127.0.0.1:8001": running.ws.removesuffix("/ws/scoreboard"),
    }
    run_page(replaced(snippets, addresses), folder, environment)
    return made


@asynccontextmanager
async def serve(project: Path, script: str, environment: dict[str, str]) -> AsyncIterator[str]:
    """Run a script of the project that serves the page; return the address."""
    address = f"http://127.0.0.1:{(port := find_free_port())}"
    with (project / f"{script}.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *("npm", "run", script, "--", "--port", str(port), "--strictPort"),
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:

        async def is_up() -> bool:
            try:
                async with httpx.AsyncClient() as client:
                    return (await client.get(address)).status_code == 200
            except httpx.TransportError as error:
                raise AssertionError("it does not listen yet") from error

        await eventually_async(is_up, within_s=60)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 30)


@pytest.mark.parametrize("script", ["dev", "preview"])
async def test_the_page_of_the_tutorial_follows_the_board(
    script: str,
    browser: Browser,
    project: Path,
    running: System,
    environment: dict[str, str],
) -> None:
    async def count(client: httpx.AsyncClient, number: int) -> int:
        action = {"userId": "alice", "actionId": f"win:{script}-{number}"}
        answer = await client.post("/api/scores/update", json=action)
        assert answer.status_code == 200
        return answer.json()["newScore"]

    headers = {"Authorization": f"Bearer {running.token('alice')}"}
    async with (
        serve(project, script, environment) as address,
        httpx.AsyncClient(base_url=running.api, headers=headers) as client,
    ):
        score = await count(client, 1)
        context = await browser.new_context()
        try:
            page = await context.new_page()
            await page.goto(address)
            rows = page.get_by_role("list", name="Leaderboard").get_by_role("listitem")
            await expect(rows).to_have_text([f"1alice{score}"], timeout=TIMEOUT_MS)

            score = await count(client, 2)

            await expect(rows).to_have_text([f"1alice{score}"], timeout=TIMEOUT_MS)
            await expect(page.locator("#leader")).to_have_text(f"alice leads with {score}")
        finally:
            await context.close()
