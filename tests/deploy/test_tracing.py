"""deploy/docker/tracing.yml fits to docker-compose.yml and the settings. No container is run."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from scoreboard.runtime.settings import load
from tests.deploy.compose import ROOT, SERVICES, Entity, dockerfile, environment

FILE = ROOT / "deploy/docker/tracing.yml"
TRACED: dict[str, Entity] = yaml.safe_load(FILE.read_text())["services"]


def test_the_file_matches_the_compose_specification() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    schema = ["--builtin-schema", "vendor.compose-spec"]
    subprocess.run([checker, *schema, FILE], cwd=ROOT, check=True)


def test_the_services_are_traced_by_their_settings() -> None:
    ours = set(TRACED) - {"jaeger"}
    assert ours == {"api", "streamer", "flusher"}
    for name in ours:
        merged = environment(name) | TRACED[name]["environment"]
        settings = load({k: v for k, v in merged.items() if not k.startswith("OTEL_")})
        assert settings.tracing == "app"
        endpoint = urlsplit(merged["OTEL_EXPORTER_OTLP_ENDPOINT"])
        assert (endpoint.hostname, endpoint.port) == ("jaeger", 4318)
        assert SERVICES[name]["networks"] == TRACED["jaeger"]["networks"]


def test_the_image_of_the_services_contains_the_extra_under_another_name() -> None:
    images = {TRACED[name]["image"] for name in set(TRACED) - {"jaeger"}}
    assert len(images) == 1
    assert not images & {service["image"] for service in SERVICES.values()}
    # One service builds it: parallel builds would export the same tag.
    (build,) = (service["build"] for service in TRACED.values() if "build" in service)
    (argument, value), *_ = build["args"].items()
    assert f"ARG {argument}=base\n" in dockerfile("Dockerfile")
    assert (ROOT / f"requirements/{value}.txt").exists()
    assert '-r "requirements/$REQUIREMENTS.txt"' in dockerfile("Dockerfile")


def test_jaeger_is_hardened_and_on_loopback() -> None:
    jaeger = TRACED["jaeger"]
    assert "jaeger" not in SERVICES
    assert jaeger["read_only"] is True
    assert jaeger["cap_drop"] == ["ALL"]
    assert jaeger["user"].split(":")[0] != "0"
    assert all(port.startswith("127.0.0.1:") for port in jaeger["ports"])
    assert set(jaeger["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
