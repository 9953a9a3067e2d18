"""The metrics of every service, as Prometheus reads them from a running system."""

import asyncio
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from cli.embedded.ports import find_free_port
from scoreboard.runtime.settings import PREFIX
from scoreboard.security.tokens import READ
from tests.kong.admin import fake_admin
from tests.support.clients.viewer import RawViewer, request_bytes
from tests.support.eventually import eventually
from tests.support.fakes.tokens import ISSUER
from tests.support.reference import metrics_of
from tests.support.servers.system import System

pytestmark = pytest.mark.slow

SERVICES = ("api", "streamer", "flusher")

STILL = {
    "scoreboard_audit_lines_dropped_total",
    "scoreboard_board_regressions_total",
    "scoreboard_calls_refused_total",
    "scoreboard_flusher_dead_letter_total",
    "scoreboard_flusher_drifted_total",
    "scoreboard_flusher_faults_total",
    "scoreboard_log_lines_dropped_total",
    "scoreboard_names_unavailable_total",
    "scoreboard_proof_failures_total",
    "scoreboard_pg_pool_errors_total",
    "scoreboard_pubsub_malformed_total",
    "scoreboard_pubsub_reconnects_total",
    "scoreboard_redis_redirects_total",
    "scoreboard_reconcile_mismatches_total",
    "scoreboard_trace_spans_total",
    "scoreboard_ws_frames_skipped_total",
    "scoreboard_ws_places_skipped_total",
    "scoreboard_ws_watches_refused_total",
}
"""Counters of faults, and of spans without tracing: 0 in a healthy system."""

GAUGES = {
    "scoreboard_build_info": (1, 1),
    "scoreboard_redis_up": (1, 1),
    "scoreboard_redis_durable": (1, 1),
    "scoreboard_postgres_up": (1, 1),
    "scoreboard_secret_version_info": (1, 1),
    "scoreboard_secret_age_seconds": (0, 60),
    "scoreboard_secret_rotation_age_seconds": (0, 300),
    "scoreboard_board_epoch": (1, 1),
    "scoreboard_board_age_seconds": (0, 10),
    "scoreboard_partition_open": (1, 1),
    "scoreboard_flusher_leading": (1, 1),
    "scoreboard_stream_oldest_unacked_age_seconds": (0, 10),
    "scoreboard_dead_letters": (0, 0),
    "scoreboard_pg_pool_connections": (0, 100),
    "scoreboard_loop_lag_seconds": (0, 5),
}
"""The least and the greatest value of gauges in a healthy system."""

Scrape = dict[str, Metric]


def scrape(url: str) -> Scrape:
    """Return the metric families of a process by the name of the reference page."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=10).text
    families = {}
    for family in text_string_to_metric_families(text):
        families[family.name + ("_total" if family.type == "counter" else "")] = family
    return families


def total(scraped: Mapping[str, Metric], name: str, **labels: str) -> float:
    """Return the events of a counter or histogram, over all series with the labels."""
    counted = f"{name}_count" if scraped[name].type == "histogram" else name
    return sum(
        sample.value
        for sample in scraped[name].samples
        if sample.name == counted and labels.items() <= sample.labels.items()
    )


class Observed(System):
    """A system whose services read their logins from files and limit updates themselves."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            api_metrics_port=find_free_port(),
            rate_limit="app",
            secrets="file",
            redis_secret=folder / "redis.json",
            database_secret=folder / "database.json",
            secrets_refresh_s=1,
            ping_s=1,
        )

    def start(self) -> None:
        for server, name, user in (
            (self.valkey, "redis", "default"),
            (self.postgres, "database", self.postgres.user),
        ):
            self.on_stop(server.stop)
            server.start()
            login = {"username": user, "password": server.password}
            (self.folder / f"{name}.json").write_text(json.dumps(login))
        super().start()
        variables = self.variables["api"]
        ports = {
            name: variables[f"SCOREBOARD_{prefix}_METRICS_PORT"]
            for name, prefix in zip(SERVICES, ("API", "WS", "FLUSHER"), strict=True)
        }
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}

    def scrapes(self) -> dict[str, Scrape]:
        """Return what each service exports."""
        return {name: scrape(url) for name, url in self.urls.items()}


async def play(system: Observed) -> None:
    """Cause each kind of event that a healthy system has."""
    port = int(system.variables["streamer"]["SCOREBOARD_WS_PORT"])
    with ExitStack() as stack:
        viewer, other = [stack.enter_context(closing(await RawViewer.open(port))) for _ in range(2)]
        await other.send(request_bytes(token="x.y.z"))
        assert (await other.answer()).status == 401
        await viewer.send(request_bytes(token=system.token("viewer")))
        assert (await viewer.answer()).status == 101
        await viewer.next("leaderboard")
        async with httpx.AsyncClient(base_url=system.api, trust_env=False, timeout=20) as client:
            await send_requests(system, client)
        while len((await viewer.next("leaderboard"))["leaderboard"]) < 3:
            pass
        renewed = system.issuer.issue("viewer", (READ,), ttl_s=7200)
        await viewer.send_json({"type": "auth", "token": renewed})
        await viewer.next("heartbeat")
        await viewer.send_json({"type": "sync"})
        await viewer.next("leaderboard")
        while not viewer.pings:
            await viewer.frame()


async def send_requests(system: Observed, client: httpx.AsyncClient) -> None:
    """Send updates with each outcome, and reads."""

    async def update(user: str, action: str, points: int | None = None) -> int:
        headers = {"Authorization": f"Bearer {system.token(user)}"}
        body: dict[str, object] = {"userId": user, "actionId": action}
        if points is not None:
            headers, body = system.game_server(), body | {"points": points}
        answer = await client.post("/api/scores/update", json=body, headers=headers)
        return answer.status_code

    async with client.stream("GET", "/api/scores/stream") as events:
        await anext(events.aiter_lines())
        assert [await update("alice", f"win:{number}") for number in (1, 2, 2)] == [200] * 3
    assert await update("bob", "win:1", points=5) == 200
    assert await update("bob", "win:1", points=6) == 409
    assert 429 in [await update("carol", f"win:{number}") for number in range(12)]
    refused = await client.post(
        "/api/scores/update", json={}, headers={"Authorization": "Bearer x.y.z"}
    )
    assert refused.status_code == 401
    assert (await client.get("/api/scores/leaderboard?names=true")).status_code == 200


@pytest.fixture(scope="module")
def observed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Observed, dict[str, Scrape], dict[str, Scrape]]]:
    """Return a running system, and what its services exported before and after a little load."""
    system = Observed(tmp_path_factory.mktemp("observed") / "system")
    try:
        system.start()
        before = system.scrapes()
        asyncio.run(play(system))
        yield system, before, eventually(lambda: settled(before, system.scrapes()), within_s=15)
    finally:
        system.stop()


def settled(before: dict[str, Scrape], scrapes: dict[str, Scrape]) -> dict[str, Scrape]:
    """Return the scrapes once all is committed, viewer and stream have ended, secrets were read."""
    reads = "scoreboard_secret_refresh_total"
    for service in SERVICES:
        assert total(scrapes[service], reads) > total(before[service], reads)
    applied = total(scrapes["api"], "scoreboard_score_updates_total", outcome="applied")
    assert total(scrapes["flusher"], "scoreboard_accept_to_commit_seconds") >= applied
    assert total(scrapes["streamer"], "scoreboard_ws_closes_total") >= 1
    assert total(scrapes["api"], "scoreboard_event_streams_ended_total") >= 1
    return scrapes


Observation = tuple[Observed, dict[str, Scrape], dict[str, Scrape]]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_exports_exactly_the_metrics_of_the_reference_page(
    observed: Observation, service: str
) -> None:
    _, _, after = observed
    described = {one.name: one for one in metrics_of(service)}
    described.pop("scoreboard_worker_up", None)  # only with several workers

    assert set(after[service]) == set(described)
    for name, family in after[service].items():
        assert family.type == described[name].kind, name
        assert family.samples, name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(described[name].labels), name


@pytest.mark.parametrize("service", SERVICES)
def test_counters_and_histograms_move_under_load_and_those_of_faults_do_not(
    observed: Observation, service: str
) -> None:
    _, before, after = observed
    events = [
        name for name, family in after[service].items() if family.type in {"counter", "histogram"}
    ]
    moved = {name for name in events if total(after[service], name) > total(before[service], name)}

    assert set(events) - moved == STILL & set(events)
    assert not {name for name in STILL & set(events) if total(after[service], name)}


@pytest.mark.parametrize("service", SERVICES)
def test_gauges_are_in_the_range_of_a_healthy_system(observed: Observation, service: str) -> None:
    _, _, after = observed
    gauges = {
        name: [sample.value for sample in family.samples]
        for name, family in after[service].items()
        if family.type == "gauge"
    }

    assert not {name for name, values in gauges.items() if any(map(math.isnan, values))}
    for name in GAUGES.keys() & gauges.keys():
        least, greatest = GAUGES[name]
        assert all(least <= value <= greatest for value in gauges[name]), (name, gauges[name])


def test_outcomes_of_updates_are_counted(observed: Observation) -> None:
    _, _, after = observed

    def outcome(name: str) -> float:
        return total(after["api"], "scoreboard_score_updates_total", outcome=name)

    assert (outcome("replayed"), outcome("conflict")) == (1, 1)
    assert outcome("rate_limited") >= 2
    assert outcome("applied") + outcome("rate_limited") == 15
    assert outcome("unknown") == outcome("unavailable") == outcome("busy") == 0


def test_every_action_is_in_the_histogram_of_commits_once(observed: Observation) -> None:
    _, _, after = observed
    name = "scoreboard_accept_to_commit_seconds"

    applied = total(after["api"], "scoreboard_score_updates_total", outcome="applied")
    sums = [one.value for one in after["flusher"][name].samples if one.name.endswith("_sum")]

    assert total(after["flusher"], name) == applied
    assert 0 < sums[0] < 10 * applied


def test_the_delay_of_a_board_begins_before_its_notification(observed: Observation) -> None:
    _, _, after = observed

    def mean_s(name: str) -> float:
        samples = {one.name: one.value for one in after["streamer"][name].samples}
        return samples[f"{name}_sum"] / samples[f"{name}_count"]

    assert 0 < mean_s("scoreboard_accept_to_viewer_seconds") < 2


@pytest.mark.parametrize("service", SERVICES)
def test_promtool_accepts_the_metrics(observed: Observation, service: str) -> None:
    system, _, _ = observed

    assert lint(system.urls[service]) == ""


def lint(url: str) -> str:
    """Return what promtool finds wrong with the metrics of a process."""
    if shutil.which("promtool") is None:
        reason = "promtool is not installed (Debian package prometheus)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    metrics = httpx.get(f"{url}/metrics", trust_env=False, timeout=10).content
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=metrics,
        capture_output=True,
        timeout=30,
        check=False,
    )
    found = (done.stdout + done.stderr).decode()
    assert (done.returncode == 0) == (not found), found
    return found


def test_kong_sync_exports_the_metrics_of_the_reference_page(
    tmp_path: Path, jwks: dict[str, object]
) -> None:
    port = find_free_port()
    (tmp_path / "redis.json").write_text('{"username": "kong", "password": "counters"}')
    with fake_admin() as admin:
        admin.jwks = json.dumps(jwks).encode()
        environ = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
        environ |= {
            "REDIS_URL": "redis://valkey-counters:6379/0",
            "SCOREBOARD_JWKS_URL": admin.jwks_url,
            "SCOREBOARD_ISSUER": ISSUER,
            "SCOREBOARD_AUDIENCE": "scoreboard",
            "SCOREBOARD_SECRETS": "file",
            "SCOREBOARD_REDIS_SECRET": str(tmp_path / "redis.json"),
        }
        arguments = ["--output", str(tmp_path / "kong.yml"), "--admin", admin.url]
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "kong", "sync", *arguments, "--probe-port", str(port)],
            env=environ,
        )
        try:
            url = f"http://127.0.0.1:{port}"

            def synchronised() -> Scrape | None:
                with suppress(httpx.TransportError):
                    found = scrape(url)
                    if total(found, "scoreboard_kong_sync_turns_total", result="loaded"):
                        return found
                return None

            found = eventually(synchronised, within_s=20)
            assert found is not None
            described = {one.name for one in metrics_of("scoreboard kong sync")}
            # The command line also imports modules of the services.
            assert described <= set(found)
            assert [name for name in described if not found[name].samples] == []
            assert lint(url) == ""
        finally:
            process.terminate()
            process.wait(20)
