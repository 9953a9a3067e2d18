"""Which requests are traced, and what a failing collector does to them: nothing."""

import os
import re
import subprocess
import sys
import time

import pytest

from tests.integration.test_api_server import head, talk
from tests.support.eventually import eventually
from tests.support.fakes.otlp import Collector
from tests.support.fakes.tokens import MakeToken
from tests.support.servers.api import UPDATE_PATH, ApiClient, StartApi, open_boards
from tests.support.servers.api_process import ApiProcess, RunApi, client_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
LOW = f"00-{'0' * 31}1-{SPAN}-01"
"""Samplers that compare the trace id with a ratio choose this one at any ratio."""


@pytest.fixture
def exporting(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Collector:
    for name, text in collector.environment.items():
        monkeypatch.setenv(name, text)
    return collector


async def stop(client: ApiClient) -> None:
    """Stop the api, which exports its spans."""
    client.stop.set()
    await client.served


@pytest.mark.parametrize(
    ("chosen", "traceparent", "is_traced"),
    [
        (("app", "127.0.0.1", 0), SAMPLED, False),
        (("app", "127.0.0.1", 0), LOW, False),
        (("app", "127.0.0.1", 1), UNSAMPLED, True),
        (("app", "", 1), None, True),
        (("gateway", "127.0.0.1", 0), SAMPLED, True),
        (("gateway", "127.0.0.1", 1), UNSAMPLED, False),
        (("gateway", "127.0.0.1", 1), "garbage", True),
        (("gateway", "127.0.0.1", 0), None, False),
        (("gateway", "10.9.9.9", 0), SAMPLED, False),
        (("gateway", "10.9.9.9", 1), UNSAMPLED, True),
        (("off", "127.0.0.1", 1), SAMPLED, False),
    ],
)
async def test_a_client_cannot_choose_to_be_traced(
    start_api: StartApi,
    exporting: Collector,
    chosen: tuple[str, str, float],
    traceparent: str | None,
    is_traced: bool,
) -> None:
    tracing, hops, ratio = chosen
    client = await start_api(tracing=tracing, trusted_hops=hops, trace_ratio=ratio)
    headers = client.bearer("alice") | ({"traceparent": traceparent} if traceparent else {})

    answer = await client.update(headers=headers)
    await client.get("/health/ready", headers=headers)
    await stop(client)

    assert answer.status_code == 200
    names = sorted(span.name for span in exporting.spans)
    assert names == ([f"POST {UPDATE_PATH}", "submit.lua"] if is_traced else [])


async def test_the_share_of_traced_requests_is_the_ratio(
    start_api: StartApi, exporting: Collector
) -> None:
    client = await start_api(tracing="app", trace_ratio=0.25)
    for number in range(400):
        await client.get("/nowhere", headers={"traceparent": SAMPLED, "X-N": str(number)})
    await stop(client)

    assert 50 < len(exporting.spans) < 150, "six standard deviations"


async def test_a_gateway_must_be_trusted_by_its_address(start_api: StartApi) -> None:
    with pytest.raises(Exception, match="SCOREBOARD_TRUSTED_HOPS"):
        await start_api(tracing="gateway")


async def test_a_pipelined_request_has_no_part_in_the_trace_before_it(
    start_api: StartApi, exporting: Collector
) -> None:
    client = await start_api(tracing="gateway", trusted_hops="127.0.0.1", trace_ratio=0)
    requests = b""
    for number, traceparent in enumerate([SAMPLED, UNSAMPLED], 1):
        body = b'{"userId":"alice","actionId":"win:%d"}' % number
        close = ("Connection: close",) if number == 2 else ()
        fields = (f"Content-Length: {len(body)}", f"traceparent: {traceparent}", *close)
        requests += head(client, *fields) + body

    answers = await talk(client, requests)
    await stop(client)

    assert answers.count(b"HTTP/1.1 200") == 2
    assert sorted(span.name for span in exporting.spans) == [f"POST {UPDATE_PATH}", "submit.lua"]


async def test_an_update_by_the_framework_is_traced_alike(
    start_api: StartApi, exporting: Collector
) -> None:
    client = await start_api(tracing="app", trace_ratio=1, direct=False)
    await client.update(headers=client.bearer("alice") | {"traceparent": SAMPLED})
    await stop(client)

    spans = {span.name: span for span in exporting.spans}
    assert spans["submit.lua"].parent_id == spans[f"POST {UPDATE_PATH}"].span_id
    assert spans[f"POST {UPDATE_PATH}"].parent_id == SPAN


@pytest.mark.parametrize("method", ["BREW", "OPTIONS"])
async def test_clients_cannot_invent_names_of_spans(
    start_api: StartApi, exporting: Collector, method: str
) -> None:
    client = await start_api(tracing="app", trace_ratio=1)
    await client.request(method, "/invented/path")
    await stop(client)

    [span] = exporting.spans
    assert span.name == {"BREW": "HTTP"}.get(method, method)
    assert span.attributes["http.request.method"] == {"BREW": "_OTHER"}.get(method, method)
    assert b"invented" not in exporting.raw


def update_often(api: ApiProcess, token: str, count: int) -> float:
    """Send updates; return the longest time of one."""
    longest_s = 0.0
    headers = {"Authorization": f"Bearer {token}"}
    with client_of(api) as client:
        for number in range(count):
            began_s = time.monotonic()
            body = {"userId": "alice", "actionId": f"win:{time.time_ns()}-{number}"}
            answer = client.post(UPDATE_PATH, json=body, headers=headers)
            assert answer.status_code == 200
            longest_s = max(longest_s, time.monotonic() - began_s)
    return longest_s


@pytest.fixture
async def tracing_environment(collector: Collector, redis_url: str) -> dict[str, str]:
    """Open a board; return variables with a secret, in part in a form that cannot be parsed."""
    await open_boards(redis_url)
    return collector.environment | {
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer s3cret,s3cret-without-a-value",
        "OTEL_BSP_MAX_QUEUE_SIZE": "16",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8",
    }


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["away", "silent", "failing"])
async def test_a_failing_collector_delays_no_request_and_is_logged_once(
    run_api: RunApi,
    make_token: MakeToken,
    collector: Collector,
    tracing_environment: dict[str, str],
    fault: str,
) -> None:
    environ = tracing_environment | {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.5"}
    if fault == "away":
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    elif fault == "silent":
        collector.may_answer.clear()
    else:
        collector.status = 500
    api = run_api(tracing="app", trace_ratio=1, environ=environ)
    token = make_token("alice")

    longest_s = update_often(api, token, 200)
    eventually(lambda: api.lines("trace_export_failed"), within_s=15)
    update_often(api, token, 50)

    assert longest_s < 1
    began_s = time.monotonic()
    assert api.stop() == 0
    assert time.monotonic() - began_s < 6
    [line] = api.lines("trace_export_failed")
    assert line["log.level"] == "warning"
    assert "s3cret" not in api.output
    assert "opentelemetry" not in api.output, "its lines may contain headers"


@pytest.mark.slow
async def test_a_collector_that_comes_back_gets_new_spans(
    run_api: RunApi,
    make_token: MakeToken,
    collector: Collector,
    tracing_environment: dict[str, str],
) -> None:
    collector.status = 400
    api = run_api(tracing="app", trace_ratio=1, environ=tracing_environment)
    token = make_token("alice")
    update_often(api, token, 20)
    eventually(lambda: api.lines("trace_export_failed"))

    collector.status = 200

    def arrives() -> bool:
        update_often(api, token, 1)
        return bool(collector.spans and api.lines("trace_export_recovered"))

    eventually(arrives, within_s=10)
    assert len(api.lines("trace_export_failed")) == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
async def test_an_invalid_variable_is_reported_in_one_line(
    run_api: RunApi, redis_url: str, variable: str, value: str
) -> None:
    api = run_api(tracing="app", environ={variable: value}, wait=False)

    assert api.process.wait(20) == 1
    assert "OTEL_" in api.output
    assert "Traceback" not in api.output
    assert len(api.output.splitlines()) == 1


async def test_the_sdk_can_be_disabled(
    run_api: RunApi, redis_url: str, make_token: MakeToken, collector: Collector
) -> None:
    await open_boards(redis_url)
    environ = collector.environment | {"OTEL_SDK_DISABLED": "true"}
    api = run_api(tracing="app", trace_ratio=1, environ=environ)
    update_often(api, make_token("alice"), 3)

    assert api.stop() == 0
    assert collector.requests == 0


PROGRAM = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
import api.__main__, flusher.__main__, streamer.__main__
from api.app import create_app
from scoreboard.runtime.settings import load
settings = {"REDIS_URL": "redis://127.0.0.1:1", "SCOREBOARD_JWKS_FILE": sys.argv[1]}
settings |= {"SCOREBOARD_ISSUER": "i"}
create_app(load(settings))
assert "scoreboard.runtime.otel" not in sys.modules
create_app(load(settings | {"SCOREBOARD_TRACING": "app"}))
"""


def test_without_tracing_nothing_is_imported_and_the_extra_is_named(jwks_file: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(jwks_file)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("SCOREBOARD")},
    )

    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"SettingInvalid.*pip install 'scoreboard\[otel\]'", last), done.stderr
