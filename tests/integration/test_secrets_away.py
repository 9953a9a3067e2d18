"""Secrets Manager is away, slow, or holds a wrong document while services run and start."""

import asyncio
import http.client
import json
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cli.embedded.ports import find_free_port
from tests.support.clients.forked import run_forked
from tests.support.eventually import eventually, eventually_async
from tests.support.fakes.aws import SecretsManager
from tests.support.fakes.proxy import Proxy
from tests.support.figures import show_figures
from tests.support.servers.rotated import Rotated

pytestmark = pytest.mark.slow

REFRESH_S = 1.0
WRONG = {
    "no password": '{"username": "planted-name"}',
    "not JSON": "planted-text",
    "array": '["planted-item"]',
    "number": "5",
    "username of another type": '{"username": ["planted-item"], "password": "planted-text"}',
    "huge": json.dumps({"password": "planted-text" * 10_000}),
}


class Site:
    """A running system whose services reach Secrets Manager through ``proxy``."""

    def __init__(self, rotated: Rotated, proxy: Proxy, metrics_port: int) -> None:
        self.rotated = rotated
        self.proxy = proxy
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self._updates = 0

    def metric(self, name: str, **labels: str) -> float:
        with urlopen(self._metrics_url, timeout=30) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    def reads(self, outcome: str) -> float:
        return self.metric("scoreboard_secret_refresh_total", owner="redis", outcome=outcome)

    def age_s(self) -> float:
        return self.metric("scoreboard_secret_age_seconds", owner="redis")

    def lines(self, event: str) -> list[dict[str, object]]:
        text = self.rotated.system.services["api"].log.read_text()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == event]

    def update_on_new_connections(self) -> bool:
        """End the api's connections; submit updates until one succeeds on new ones."""
        self.rotated.redis.execute_command("CLIENT", "KILL", "USER", "api")
        return eventually(lambda: self._update() == 200)

    def _update(self) -> int:
        host = urlsplit(self.rotated.system.api).netloc
        headers = {"Content-Type": "application/json", **self.rotated.system.game_server()}
        self._updates += 1
        body = {"userId": "alice", "actionId": f"win:{self._updates}", "points": 5}
        with closing(http.client.HTTPConnection(host, timeout=30)) as connection:
            connection.request("POST", "/api/scores/update", json.dumps(body), headers)
            return connection.getresponse().status

    def start_another(self, service: str) -> subprocess.CompletedProcess[str]:
        """Start one more process of a service, which is expected to end by itself."""
        port = {"api": "SCOREBOARD_API_PORT", "streamer": "SCOREBOARD_WS_PORT"}.get(service)
        own = {
            "SCOREBOARD_API_METRICS_PORT": "0",
            "SCOREBOARD_WS_METRICS_PORT": "0",
            "SCOREBOARD_FLUSHER_METRICS_PORT": "0",
            **({port: str(find_free_port())} if port else {}),
        }
        return run_forked(service, [], self.rotated.system.variables[service] | own, timeout_s=40)


@pytest.fixture
async def site(tmp_path: Path, secrets_manager: SecretsManager) -> AsyncIterator[Site]:
    metrics_port = find_free_port()
    async with Proxy(urlsplit(secrets_manager.url).port or 0) as proxy:
        rotated = await asyncio.to_thread(
            Rotated,
            tmp_path,
            aws=secrets_manager.client,
            variables={"AWS_ENDPOINT_URL_SECRETS_MANAGER": f"http://127.0.0.1:{proxy.port}"},
            secrets_refresh_s=REFRESH_S,
            api_metrics_port=metrics_port,
            trusted_updates_per_minute=1_000_000,
        )
        try:
            await asyncio.to_thread(rotated.start)
            yield Site(rotated, proxy, metrics_port)
        finally:
            await asyncio.to_thread(rotated.close)


@pytest.mark.parametrize("is_slow", [False, True], ids=["away", "slow"])
async def test_the_last_value_stays_in_use_while_secrets_manager_does_not_answer(
    site: Site, is_slow: bool
) -> None:
    if is_slow:
        site.proxy.freeze()
    else:
        site.proxy.refuse()
    before = await asyncio.to_thread(site.reads, "failed")
    failed = await eventually_async(
        lambda: asyncio.to_thread(lambda: site.reads("failed") - before >= 2), within_s=60
    )
    began_s = time.monotonic()
    await asyncio.to_thread(site.update_on_new_connections)
    took_s = time.monotonic() - began_s
    age_s = await asyncio.to_thread(site.age_s)
    logged = site.lines("secret_refresh_failed")
    others = [await asyncio.to_thread(site.start_another, name) for name in ("api", "streamer")]

    await site.proxy.restore()
    await eventually_async(
        lambda: asyncio.to_thread(lambda: site.age_s() < 3 * REFRESH_S), within_s=60
    )

    show_figures(
        f"update on new connections in {took_s:.2f} s, age {age_s:.0f} s, {len(logged)} lines"
    )
    assert failed
    assert took_s < 8
    assert age_s > 2 * REFRESH_S
    owners = [line["scoreboard.owner"] for line in logged]
    assert len(owners) == len(set(owners)), "the same failure is logged once"
    for other in others:
        assert other.returncode == 1
        assert "secrets-unavailable" in other.stderr
        assert "The redis credentials: " in other.stderr
        assert "Traceback" not in other.stderr
    await eventually_async(lambda: bool(site.lines("secret_refresh_recovered")))


async def test_a_wrong_document_leaves_the_old_value_in_use_and_stops_new_processes(
    site: Site,
) -> None:
    rotated = site.rotated
    secret = rotated.secrets["api", "redis"]
    for wrong in WRONG.values():
        before = await asyncio.to_thread(site.reads, "invalid")
        if len(wrong) <= 65_536:
            await asyncio.to_thread(rotated.write, secret, wrong)
            await eventually_async(
                lambda before=before: asyncio.to_thread(lambda: site.reads("invalid") > before),
                within_s=40,
            )
            assert await asyncio.to_thread(site.update_on_new_connections)
    ended = await asyncio.to_thread(site.start_another, "api")
    await asyncio.to_thread(rotated.rotate, "second", "b")
    await eventually_async(lambda: bool(site.lines("secret_refresh_recovered")), within_s=60)

    logged = site.lines("secret_invalid")
    text = rotated.system.services["api"].log.read_text() + ended.stderr + ended.stdout
    assert all(secret in str(line["event.reason"]) for line in logged)
    assert len({line["event.reason"] for line in logged}) >= 3
    assert ended.returncode == 1
    assert f"{secret} must be a JSON object" in ended.stderr
    assert "planted" not in text
