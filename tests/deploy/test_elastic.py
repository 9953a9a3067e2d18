"""deploy/elastic: generated files, references between files, the compose file, setup.sh."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from scoreboard.runtime.log_fields import FIELDS, LINE_FIELDS
from tests.support.repository import ROOT

FOLDER = ROOT / "deploy/elastic"
COMPOSE = yaml.safe_load((FOLDER / "compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
every_service = pytest.mark.parametrize("service", sorted(SERVICES))


def read(kind: str) -> dict[str, Any]:
    """Return the documents of a kind by name."""
    found = sorted((FOLDER / "elasticsearch").glob(f"{kind}.*.json"))
    return {path.name[len(kind) + 1 : -5]: json.loads(path.read_text()) for path in found}


def saved_objects() -> list[dict[str, Any]]:
    lines = (FOLDER / "kibana/saved-objects.ndjson").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_generated_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "deploy/elastic/build.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_field_of_log_lines_is_mapped_with_its_type() -> None:
    root = read("component-template")["scoreboard@mappings"]["template"]["mappings"]
    types = dict(LINE_FIELDS) | {one.name: one.type for one in FIELDS.values()}
    for name, kind in types.items():
        found: Any = root
        for part in name.split("."):
            found = found["properties"][part]
        assert found["type"] == kind, name


def test_templates_name_what_exists_and_precede_those_of_elasticsearch() -> None:
    parts, policies = read("component-template"), read("ilm-policy")
    pipelines = read("ingest-pipeline")
    templates = read("index-template")
    assert set(templates) == {"logs-scoreboard.app", "logs-scoreboard.audit"}
    for name, template in templates.items():
        assert template["index_patterns"] == [f"{name}-*"]
        assert template["priority"] > 100
        assert set(template["composed_of"]) <= set(parts)
    for name, part in parts.items():
        if not name.endswith("@settings"):
            continue
        index = part["template"]["settings"]["index"]
        assert index["lifecycle"]["name"] in policies
        assert index["default_pipeline"] in pipelines


def test_saved_objects_refer_to_each_other() -> None:
    objects = saved_objects()
    names = [(one["type"], one["id"]) for one in objects]
    assert len(names) == len(set(names))
    for one in objects:
        assert {(to["type"], to["id"]) for to in one["references"]} <= set(names)
        for key, text in one["attributes"].items():
            if key.endswith("JSON") or key == "visState":
                json.loads(text)


def test_saved_objects_use_fields_that_are_mapped() -> None:
    known = {*FIELDS.values(), *((name, kind) for name, kind in LINE_FIELDS.items())}
    names = {name for name, _ in known}
    text = json.dumps(saved_objects())
    fields = set(re.findall(r'\\"field\\": \\"([^\\"]+)\\"', text))
    columns = {name for one in saved_objects() for name in one["attributes"].get("columns", [])}

    assert fields
    assert columns
    assert fields | columns <= names


# The configuration of the shippers --------------------------------------------------------------


@pytest.mark.parametrize("name", ["app", "audit"])
def test_filebeat_reads_container_logs_and_keeps_one_data_stream(name: str) -> None:
    config = yaml.safe_load((FOLDER / f"filebeat/{name}.yml").read_text())
    [source] = config["filebeat.inputs"]
    assert source["type"] == "filestream"
    assert [next(iter(parser)) for parser in source["parsers"]] == ["container", "ndjson"]
    kept = [one["drop_event.when.not.equals.event.dataset"] for one in config["processors"]
            if "drop_event.when.not.equals.event.dataset" in one]  # fmt: skip
    assert kept == [f"scoreboard.{name}"]
    outputs = [key for key in config if key.startswith("output.")]
    assert outputs == ["output.elasticsearch" if name == "app" else "output.logstash"]


def test_logstash_writes_the_audit_data_stream() -> None:
    text = (FOLDER / "logstash/pipeline.conf").read_text()
    assert text.count("{") == text.count("}")
    assert 'index => "logs-scoreboard.audit-' in text
    assert 'action => "create"' in text


# The compose file -------------------------------------------------------------------------------


def test_the_compose_file_is_included_and_matches_the_specification() -> None:
    main = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert main["include"] == ["deploy/elastic/compose.yml"]
    assert not set(SERVICES) & set(main["services"])
    checker = Path(sys.executable).with_name("check-jsonschema")
    schema = ["--builtin-schema", "vendor.compose-spec"]
    subprocess.run([checker, *schema, "deploy/elastic/compose.yml"], cwd=ROOT, check=True)


@every_service
def test_services_start_only_with_the_profile_and_are_limited(service: str) -> None:
    entity = SERVICES[service]
    assert entity["profiles"] == ["elk"]
    assert entity["cap_drop"] == ["ALL"]
    assert entity["security_opt"] == ["no-new-privileges:true"]
    assert set(entity["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert entity["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert ("healthcheck" in entity) is (entity["restart"] != "no")
    is_root = entity["user"].startswith("0")
    assert is_root is service.startswith("filebeat"), "Docker's log files can be read by root only"
    assert all(port.startswith("127.0.0.1:") for port in entity.get("ports", []))
    for other in entity.get("depends_on", {}):
        assert other in SERVICES


@every_service
def test_mounted_files_exist(service: str) -> None:
    for volume in SERVICES[service].get("volumes", []):
        source, _, *mode = volume.split(":")
        if source.startswith("."):
            assert (FOLDER / source).exists(), source
            assert mode == ["ro,z"]
        elif source.startswith("/"):
            assert volume == "/var/lib/docker/containers:/var/lib/docker/containers:ro"
        else:
            assert source in COMPOSE["volumes"]


def test_the_images_have_one_version() -> None:
    versions = {entity["image"].rpartition(":")[2] for entity in SERVICES.values()}
    assert len(versions) == 1
    assert re.fullmatch(r"8\.\d+\.\d+", versions.pop())


# setup.sh ---------------------------------------------------------------------------------------


@contextmanager
def recorder(status: int = 200) -> Iterator[tuple[str, list[tuple[str, str, int]]]]:
    """Serve any request; yield the address and what was asked: method, path, length of the body."""
    calls: list[tuple[str, str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            calls.append((self.command, self.path, len(body)))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_PUT = do_POST = answer  # noqa: N815 (names of http.server)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", calls
        finally:
            server.shutdown()


def run_setup(**variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sh", str(FOLDER / "setup.sh")],
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_setup_sends_every_file_in_the_order_of_its_use() -> None:
    with recorder() as (url, calls):
        done = run_setup(ELASTICSEARCH_URL=url, KIBANA_URL=url)

    assert done.returncode == 0, done.stderr
    files = sorted((FOLDER / "elasticsearch").glob("*.json"))
    assert len(calls) == len(files) + 1
    order = [re.sub(r"/[^/]+$", "", path) for _, path, _ in calls]
    assert list(dict.fromkeys(order)) == [
        "/_ilm/policy",
        "/_ingest/pipeline",
        "/_component_template",
        "/_index_template",
        "/api/saved_objects",
    ]
    assert ("PUT", "/_component_template/scoreboard@mappings") in {call[:2] for call in calls}
    assert all(length > 50 for *_, length in calls)


def test_setup_fails_if_a_file_is_refused() -> None:
    with recorder(status=400) as (url, calls):
        done = run_setup(ELASTICSEARCH_URL=url)

    assert done.returncode != 0
    assert len(calls) == 1


def test_setup_names_a_missing_address() -> None:
    assert "ELASTICSEARCH_URL" in run_setup().stderr
