"""docker-compose.yml: valid, hardened, and consistent with settings, plugins and commands.

These tests read the file. tests/deploy/test_first_start.py runs the scripts of a first start on
servers from wheels, and tests/proofs/compose runs the file itself on a container engine.
"""

import importlib.util
import re
import subprocess
import sys
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.gateway import config as kong_config
from scoreboard.runtime.resources import kong_path
from scoreboard.runtime.settings import Settings, describe
from scoreboard.runtime.settings import load as load_settings
from scoreboard.security.addresses import client_address, trusted_networks
from tests.deploy.compose import (
    COMPOSE,
    ONE_SHOTS,
    OURS,
    PROFILES,
    ROOT,
    SERVICES,
    Entity,
    dockerfile,
    environment,
    kong_image,
    load,
    option,
)
from tests.support.clients.commands import check_command

TEMPLATE: Entity = yaml.safe_load((kong_path() / "kong.yml").read_text())
every_service = pytest.mark.parametrize("service", sorted(SERVICES))


def test_the_file_matches_the_compose_specification() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    schema = ["--builtin-schema", "vendor.compose-spec"]
    subprocess.run([checker, *schema, "docker-compose.yml"], cwd=ROOT, check=True)


# Files, volumes, variables ----------------------------------------------------------------------


def mounts(service: str) -> list[list[str]]:
    return [volume.split(":") for volume in SERVICES[service].get("volumes", [])]


@every_service
def test_every_mounted_file_exists_and_is_read_only(service: str) -> None:
    for source, _, *mode in mounts(service):
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            # z: without this label SELinux refuses the container.
            assert mode == ["ro,z"], source
        else:
            assert source in COMPOSE["volumes"], source


def test_every_volume_is_used_and_has_the_expected_writers() -> None:
    used = {source for name in SERVICES for source, *_ in mounts(name) if source[0] != "."}
    assert used == set(COMPOSE["volumes"])
    writers = {
        volume: {
            name for name in SERVICES for source, _, *mode in mounts(name)
            if source == volume and mode != ["ro"]
        }
        for volume in used
    }  # fmt: skip
    assert writers["kong-config"] == {"kong-render", "kong-sync"}
    for service in ("api", "streamer", "flusher", "operator"):
        assert writers[f"secrets-{service}"] == {"secrets", "rotate"}
    assert writers["secrets-kong"] == {"secrets", "rotate-kong"}
    assert writers["secrets-rotator"] == {"secrets", "rotate", "rotate-kong"}
    assert writers["secrets-valkey"] == {"secrets", "valkey"}
    assert writers["secrets-counters"] == {"secrets", "valkey-counters"}
    for volume in ("secrets-owner", "secrets-postgres", "secrets-seed"):
        assert writers[volume] == {"secrets"}
    assert writers["secrets-oauth"] == {"oauth-key"}


def test_the_image_creates_the_folders_of_the_volumes() -> None:
    # A new volume gets the owner of the folder at its path in the first image that mounts it.
    made = set(re.findall(r"(?:config|secrets/\w+)(?=[ ;])", dockerfile("Dockerfile")))
    targets = {
        target.removeprefix("/var/lib/scoreboard/")
        for name in OURS for source, target, *_ in mounts(name) if source[0] != "."
    }  # fmt: skip
    assert targets == made


FILES = ("docker-compose.yml", "deploy/elastic/compose.yml", "deploy/docker/tracing.yml")
WRITTEN = re.compile(r"\$\{([A-Z0-9_]+)(:-)?([^${}]*)")
"""A variable in a compose file, whether it has a default, and the default unless that is nested."""


def variables() -> list[tuple[str, str, str]]:
    return [one for name in FILES for one in WRITTEN.findall((ROOT / name).read_text())]


def test_every_variable_has_a_default() -> None:
    assert len({name for name, _, _ in variables()}) > 15
    for name, sign, _ in variables():
        assert sign == ":-", name


def test_the_example_environment_lists_every_variable_with_its_default() -> None:
    """`make env` writes it from the settings and deploy/docker/variables.env."""
    text = (ROOT / "deploy/docker/variables.env").read_text()
    own = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", text, re.MULTILINE))
    settings = {name for name, _, _ in describe()}
    used = {name for name, _, _ in variables()}
    assert used - settings == set(own)
    for name, _, default in variables():
        if name in own and default != "scoreboard/development/":  # of `seed`, which needs a prefix
            assert default == own[name], name


FIXED = {
    # The parts of the file agree on hosts, ports and limits.
    *("REDIS_URL", "DATABASE_URL", "SCOREBOARD_TRUSTED_HOPS", "SCOREBOARD_RATE_LIMIT"),
    *("SCOREBOARD_API_HOST", "SCOREBOARD_API_PORT", "SCOREBOARD_API_METRICS_PORT"),
    *("SCOREBOARD_WS_HOST", "SCOREBOARD_WS_PORT", "SCOREBOARD_WS_METRICS_PORT"),
    *("SCOREBOARD_FLUSHER_METRICS_PORT", "SCOREBOARD_METRICS_HOST"),
    *("SCOREBOARD_REDIS_SECRET", "SCOREBOARD_DATABASE_SECRET"),
    # Containers instead (--scale), because Prometheus reads one address per container.
    *("SCOREBOARD_API_WORKERS", "SCOREBOARD_WS_WORKERS"),
    # Of the service `admin` only.
    *("SCOREBOARD_ADMIN_API", "SCOREBOARD_ADMIN_REDIS_SECRET", "SCOREBOARD_ADMIN_DATABASE_SECRET"),
    "SCOREBOARD_ADMIN_SIGN_IN_CLIENT_ID",
    # Paths in a container; SCOREBOARD_JWKS_URL and SCOREBOARD_PROOF_JWKS_URL instead.
    *("SCOREBOARD_JWKS_FILE", "SCOREBOARD_PROOF_JWKS_FILE"),
}


def test_a_setting_of_the_environment_reaches_the_services() -> None:
    """A setting in .env without an effect would be a silent mistake."""
    given = {name: f"given-{name}" for name, _, _ in describe()}
    services = load(given)["services"]
    reached = {
        name: value
        for service in ("api", "streamer", "flusher")
        for name, value in services[service]["environment"].items()
        if value == given.get(name)
    }
    assert set(given) - set(reached) == FIXED


def test_the_boards_of_the_settings_are_created_and_opened(tmp_path: Path) -> None:
    program = tmp_path / "scoreboard"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    shell, options, text = SERVICES["open"]["command"]
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SCOREBOARD_BOARDS": "main, weekly"}
    done = subprocess.run(
        [shell, options, text], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "board create main --if-missing",
        "board create weekly --if-missing",
        "action set win 10 --if-missing",
        "reseed --board main --if-uninitialised",
        "reseed --board weekly --if-uninitialised",
    ]
    assert environment("open")["SCOREBOARD_BOARDS"] == environment("api")["SCOREBOARD_BOARDS"]


def test_a_second_project_has_its_own_images_ports_and_networks() -> None:
    given = {
        "COMPOSE_PROJECT_NAME": "second",
        "GATEWAY_PORT": "1001",
        "OAUTH_PORT": "1002",
        "PROMETHEUS_PORT": "1003",
        "ALERTMANAGER_PORT": "1004",
        "GRAFANA_PORT": "1005",
        "NETWORK_PREFIX": "10.9.8",
    }
    other = load(given)

    def fixed(document: Entity) -> set[str]:
        services = document["services"].values()
        built = {s["image"] for s in services if "build" in s or s.get("pull_policy") == "never"}
        ports = {port for s in services for port in s.get("ports", ())}
        texts = re.findall(r"\d+\.\d+\.\d+\.\d+(?:/\d+)?", yaml.safe_dump(document["networks"]))
        return built | ports | set(texts)

    assert not fixed(COMPOSE) & fixed(other)
    assert not any("container_name" in service for service in other["services"].values())
    text = yaml.safe_dump(other)
    for value in ("172.30.91", "8080", "8090"):
        assert value not in text


def test_an_image_is_built_by_one_service() -> None:
    """Two builds that export one tag at the same time can fail: "already exists"."""
    built = [service["image"] for service in SERVICES.values() if "build" in service]
    assert len(built) == len(set(built)) == 3
    for name, service in SERVICES.items():
        if service["image"] == "scoreboard:local":
            assert service["pull_policy"] == "never", name
            assert ("build" in service) == (name == "secrets")


NOT_PASSED_ON = {
    "SCOREBOARD_API_PORT": "containers have addresses of their own, and Kong has these ports",
    "SCOREBOARD_WS_PORT": "as the port of the api",
    "SCOREBOARD_API_METRICS_PORT": "Prometheus and SCOREBOARD_SERVICES have these ports",
    "SCOREBOARD_WS_METRICS_PORT": "as the metrics port of the api",
    "SCOREBOARD_FLUSHER_METRICS_PORT": "as the metrics port of the api",
    "SCOREBOARD_API_WORKERS": "a service is one process; its limits of CPU time are for that",
    "SCOREBOARD_WS_WORKERS": "as the workers of the api",
    "SCOREBOARD_JWKS_FILE": "no volume has keys; SCOREBOARD_JWKS_URL is passed on",
    "SCOREBOARD_PROOF_JWKS_FILE": "as SCOREBOARD_JWKS_FILE",
    "SCOREBOARD_ADMIN_API": "the service admin has it",
    "SCOREBOARD_ADMIN_REDIS_SECRET": "the service admin has it",
    "SCOREBOARD_ADMIN_DATABASE_SECRET": "the service admin has it",
    "SCOREBOARD_ADMIN_SIGN_IN_CLIENT_ID": "the service admin has it",
}
"""Settings that neither the api nor the streamer gets, and why."""

ONLY_OF_THE_API = {
    "SCOREBOARD_API_HOST", "SCOREBOARD_RATE_LIMIT", "SCOREBOARD_UPDATES_PER_MINUTE",
    "SCOREBOARD_TRUSTED_UPDATES_PER_MINUTE", "SCOREBOARD_SIGN_IN_ISSUER",
    "SCOREBOARD_SIGN_IN_CLIENT_ID",
}  # fmt: skip


def test_api_and_streamer_get_every_setting_or_there_is_a_reason() -> None:
    every = {name for name, _, _ in describe()}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    api, streamer = (services[name]["environment"].keys() for name in ("api", "streamer"))

    assert every - api == NOT_PASSED_ON.keys() | {"SCOREBOARD_WS_HOST"}
    assert every - streamer == NOT_PASSED_ON.keys() | ONLY_OF_THE_API


def test_a_variable_overrides_its_default() -> None:
    services = load({"SCOREBOARD_ISSUER": "https://issuer.example/"})["services"]
    for name in ("api", "streamer", "kong-render", "kong-sync"):
        assert services[name]["environment"]["SCOREBOARD_ISSUER"] == "https://issuer.example/"


@pytest.mark.parametrize(
    "service", ["api", "admin", "streamer", "flusher", "open", "kong-render", "kong-sync"]
)
def test_every_service_starts_with_its_environment(service: str) -> None:
    settings = load_settings(environment(service))
    assert settings.redis_url
    if not service.startswith("kong"):
        login = {"open": "operator", "admin": "api"}.get(service, service)
        folder = f"/var/lib/scoreboard/secrets/{login}"
        assert settings.secrets == "file"
        assert settings.redis_secret == f"{folder}/redis"
        assert settings.database_secret == f"{folder}/database"
    if service != "flusher":
        assert settings.issuer
        assert settings.jwks_url


def test_gateway_and_services_have_the_same_settings() -> None:
    render, sync = environment("kong-render"), environment("kong-sync")
    assert {name: sync[name] for name in render} == render
    api, streamer = environment("api"), environment("streamer")
    for name in render:
        if name != "REDIS_URL":
            assert render[name] == api[name], name
    for name in ("ISSUER", "JWKS_URL", "AUDIENCE", "ORIGINS"):
        assert api[f"SCOREBOARD_{name}"] == streamer[f"SCOREBOARD_{name}"]
    # Only the gateway limits updates, so the api must not be reachable past it.
    assert api["SCOREBOARD_RATE_LIMIT"] == "gateway"
    assert not SERVICES["api"].get("ports")
    assert not SERVICES["streamer"].get("ports")


def test_administrators_have_an_api_of_their_own() -> None:
    """It differs from the public one by the operator's logins, which no other service has."""
    api, admin = environment("api"), environment("admin")
    own = {name: value for name, value in admin.items() if api.get(name) != value}
    folder = "/var/lib/scoreboard/secrets/operator"
    assert own == {
        "SCOREBOARD_ADMIN_API": "true",
        "SCOREBOARD_ADMIN_REDIS_SECRET": f"{folder}/redis",
        "SCOREBOARD_ADMIN_DATABASE_SECRET": f"{folder}/database",
    }
    assert set(api) - set(admin) == {
        "SCOREBOARD_UPDATES_PER_MINUTE", "SCOREBOARD_TRUSTED_UPDATES_PER_MINUTE",
    }  # fmt: skip
    settings = load_settings(admin)
    assert settings.admin_api
    assert not load_settings(api).admin_api
    assert SERVICES["admin"]["profiles"] == ["admin"]
    assert not SERVICES["admin"].get("ports")
    assert networks("admin") == {"inside"}
    holders = {name for name in OURS for source, *_ in mounts(name) if source == "secrets-operator"}
    assert holders == {"admin", "open", "secrets", "seed", "rotate"}


@pytest.mark.parametrize("service", ["kong-render", "kong-sync"])
def test_the_gateway_has_the_administrators_api_only_if_it_is_asked_for(service: str) -> None:
    assert "--admin-target=" in SERVICES[service]["command"]
    other = load({"ADMIN_TARGET": "admin:8000"})["services"][service]
    assert f"--admin-target=admin:{default('api_port')}" in other["command"]
    assert kong_config.GatewayOptions.of(load_settings(environment(service))).admin_targets == ()


# Commands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["api", "admin", "streamer", "flusher"])
def test_services_start_as_modules_that_exist(service: str) -> None:
    module = {"admin": "api"}.get(service, service)
    assert SERVICES[service]["command"] == ["python", "-m", module]
    assert importlib.util.find_spec(f"{module}.__main__")


def command_lines() -> list[list[str]]:
    lines = []
    for service in SERVICES.values():
        words = service.get("command", [])
        if words[:1] == ["sh"]:
            lines += [part.replace('"$board"', "main").split() for part in words[2].split("\n")]
        else:
            lines.append(words)
    return [line[1:] for line in lines if line[:1] == ["scoreboard"]]


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_every_scoreboard_command_exists_with_its_options(words: list[str]) -> None:
    check_command(words)


def test_all_scoreboard_commands_are_found() -> None:
    assert len(command_lines()) == 6


def test_rotation_is_the_command_of_its_containers() -> None:
    assert SERVICES["rotate"]["entrypoint"] == ["scoreboard", "secrets", "rotate"]
    assert SERVICES["rotate-kong"]["entrypoint"] == ["scoreboard", "secrets"]


# Addresses --------------------------------------------------------------------------------------


def test_ports_are_published_only_on_loopback() -> None:
    published = {name: s["ports"] for name, s in SERVICES.items() if s.get("ports")}
    assert published == {
        "kong": ["127.0.0.1:8080:8000"],
        "oauth": ["127.0.0.1:8090:8090"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "alertmanager": ["127.0.0.1:9093:9093"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def default(field: str) -> Any:
    fields = Settings.__struct_fields__
    defaults = Settings.__struct_defaults__
    return defaults[fields.index(field) - (len(fields) - len(defaults))]


def test_ports_of_health_checks_match_the_settings() -> None:
    expected = {
        "api": default("api_port"),
        "admin": default("api_port"),
        "streamer": default("ws_metrics_port"),
        "flusher": default("flusher_metrics_port"),
        "kong-sync": 9103,
    }
    for service, port in expected.items():
        test = " ".join(SERVICES[service]["healthcheck"]["test"])
        assert f"127.0.0.1:{port}/health/" in test
        assert "urllib" in test
        assert str(port) in dockerfile("Dockerfile").partition("EXPOSE")[2].partition("\n")[0]


def test_the_targets_of_the_gateway_match_the_ports_of_the_services() -> None:
    targets = {u["name"]: [t["target"] for t in u["targets"]] for u in TEMPLATE["upstreams"]}
    assert targets == {
        "scoreboard-api.upstream": [f"api:{default('api_port')}"],
        "scoreboard-streamer.upstream": [f"streamer:{default('ws_port')}"],
        "scoreboard-admin.upstream": [f"admin:{default('api_port')}"],
    }
    for service in ("kong-render", "kong-sync"):
        command = SERVICES[service]["command"]
        assert "--api" not in command
        assert "--streamer" not in command


def test_hosts_in_addresses_are_services() -> None:
    aliases = set(SERVICES["oauth"]["networks"]["inside"]["aliases"])
    for name in SERVICES:
        for key, value in environment(name).items():
            for host in re.findall(r"(?:://)(?:[^/@]*@)?([a-z.-]+)", str(value)):
                if key != "SCOREBOARD_ORIGINS":
                    assert host in SERVICES or host in aliases, (name, key, host)


def test_counters_have_their_own_server() -> None:
    board, counters = environment("api")["REDIS_URL"], environment("kong-sync")["REDIS_URL"]
    assert board == "redis://valkey:6379/0"
    assert counters == "redis://kong@valkey-counters:6379/0"
    assert networks("valkey-counters") == {"counters"}
    members = {name for name in SERVICES if "counters" in networks(name)}
    assert members == {"kong", "valkey-counters", "rotate-kong"}
    assert COMPOSE["networks"]["counters"] == {"internal": True}


def test_counters_are_not_persisted_and_evicted_at_the_memory_limit() -> None:
    lines = valkey_conf("valkey-counters.conf")
    assert (lines["appendonly"], lines["save"]) == ("no", '""')
    assert lines["maxmemory-policy"] == "volatile-ttl"  # every counter has a TTL
    limit_mb = int(SERVICES["valkey-counters"]["deploy"]["resources"]["limits"]["memory"][:-1])
    assert int(lines["maxmemory"].removesuffix("mb")) * 2 <= limit_mb
    targets = {source: target for source, target, *_ in mounts("valkey-counters")}
    assert lines["aclfile"].startswith(targets["secrets-counters"])
    assert set(targets) & {"valkey-data", "secrets-valkey"} == set()


def networks(service: str) -> set[str]:
    """Return the networks of a service, in either form of the specification."""
    return set(SERVICES[service].get("networks", ()))


def addresses() -> dict[str, IPv4Address]:
    """Return the static addresses of services in the network `inside`."""
    found = {}
    for name, service in SERVICES.items():
        given = service.get("networks", ())
        options = given.get("inside") if isinstance(given, dict) else None
        if options and "ipv4_address" in options:
            found[name] = IPv4Address(options["ipv4_address"])
    return found


def test_services_trust_only_kong_for_forwarded_addresses() -> None:
    # The bridge's gateway, the address of clients on this machine, is in the same subnet.
    (pool,) = COMPOSE["networks"]["inside"]["ipam"]["config"]
    subnet, dealt = ip_network(pool["subnet"]), ip_network(pool["ip_range"])
    kong = addresses()["kong"]
    assert addresses() == {"kong": kong}
    assert kong in subnet
    assert kong not in dealt  # or another container could get it
    assert dealt.subnet_of(subnet)
    for service in ("api", "admin", "streamer", "flusher"):
        trusted = trusted_networks(load_settings(environment(service)).trusted_hops)
        assert [str(network) for network in trusted] == [f"{kong}/32"], service
        assert not any(IPv4Address(pool["gateway"]) in network for network in trusted)


@pytest.mark.parametrize("client", ["172.30.91.1", "172.30.91.65"])
def test_a_client_of_this_machine_cannot_forge_its_address(client: str) -> None:
    hops = trusted_networks(load_settings(environment("streamer")).trusted_hops)
    # Kong appends the client's address to the header that the client sent.
    seen = client_address(str(addresses()["kong"]), [f"203.0.113.9, {client}"], hops)
    assert seen == client


def test_kong_does_not_trust_forwarded_addresses() -> None:
    settings = {**kong_image(), **environment("kong")}
    assert not [name for name in settings if name.startswith(("KONG_TRUSTED_IPS", "KONG_REAL_IP"))]


# Health and order -------------------------------------------------------------------------------


def has_health_check(service: str) -> bool:
    entity = SERVICES[service]
    build = entity.get("build", {})
    in_image = "dockerfile" in build and "HEALTHCHECK" in dockerfile(build["dockerfile"])
    return "healthcheck" in entity or in_image


@every_service
def test_long_running_services_have_a_health_check(service: str) -> None:
    # The image of redis-exporter has one program, and that has no health check.
    assert has_health_check(service) is (service not in ONE_SHOTS | {"redis-exporter"})
    assert "curl" not in str(SERVICES[service].get("healthcheck", ""))


@every_service
def test_dependencies_wait_for_completion_or_health(service: str) -> None:
    for other, rule in SERVICES[service].get("depends_on", {}).items():
        expected = "service_completed_successfully" if other in ONE_SHOTS else "service_healthy"
        optional = {"required": False} if other in PROFILES and service not in PROFILES else {}
        assert rule == {"condition": expected, **optional}


def test_dependencies_have_no_cycle_and_include_the_required_services() -> None:
    def dependencies_of(service: str, seen: tuple[str, ...] = ()) -> set[str]:
        assert service not in seen, (*seen, service)
        direct = set(SERVICES[service].get("depends_on", {}))
        return direct.union(*(dependencies_of(other, (*seen, service)) for other in direct))

    for service in ("api", "streamer", "flusher"):
        needed = {"secrets", "seed", "moto", "valkey", "postgres", "roles", "migrate", "open"}
        assert needed <= dependencies_of(service), service
    assert {"kong-render", "oauth", "valkey", "api", "streamer"} <= dependencies_of("kong")
    assert "kong" in dependencies_of("kong-sync")


# Containers -------------------------------------------------------------------------------------


@every_service
def test_containers_are_hardened_and_limited(service: str) -> None:
    entity = SERVICES[service]
    assert entity["read_only"] is True
    assert entity["cap_drop"] == ["ALL"]
    assert entity["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in entity
    assert "cap_add" not in entity
    user = entity.get("user") or re.findall(r"^USER (\S+)", _image_text(service), re.MULTILINE)[-1]
    assert user.split(":")[0] not in {"root", "0"}
    limits = entity["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}


def _image_text(service: str) -> str:
    return dockerfile(SERVICES[service]["build"]["dockerfile"])


@every_service
def test_logs_are_bounded(service: str) -> None:
    assert SERVICES[service]["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


def test_the_postgres_volume_is_mounted_at_the_path_of_the_image() -> None:
    # The image of 18 fails to start with a volume on …/data.
    targets = {source: target for source, target, *_ in mounts("postgres")}
    assert targets["postgres-data"] == "/var/lib/postgresql"


def valkey_conf(name: str) -> dict[str, str]:
    """Return the directives of a configuration of Valkey."""
    lines = (ROOT / "deploy/docker" / name).read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))


def test_valkey_has_the_settings_that_the_services_require() -> None:
    from scoreboard.store.durability import REQUIRED_SETTINGS

    lines = valkey_conf("valkey.conf")
    assert {name: lines[name] for name in REQUIRED_SETTINGS} == REQUIRED_SETTINGS
    assert int(lines["maxmemory"].removesuffix("mb")) > 0
    assert lines["aclfile"].startswith({s: t for s, t, *_ in mounts("valkey")}["secrets-valkey"])
    assert SERVICES["valkey"]["command"][1] in {target for _, target, *_ in mounts("valkey")}


# The gateway ------------------------------------------------------------------------------------


def test_kong_loads_the_plugins_that_the_configuration_uses() -> None:
    used = {plugin["name"] for plugin in TEMPLATE["plugins"]}
    for service in TEMPLATE["services"]:
        for route in service["routes"]:
            used |= {plugin["name"] for plugin in route["plugins"]}
    assert set(kong_image()["KONG_PLUGINS"].split(",")) == used | {"cors"}


def test_kong_starts_with_the_file_that_render_and_sync_write() -> None:
    path = environment("kong")["KONG_DECLARATIVE_CONFIG"]
    assert path == option("kong-render", "--output") == option("kong-sync", "--output")
    for service in ("kong", "kong-render", "kong-sync"):
        targets = {source: target for source, target, *_ in mounts(service)}
        assert path.startswith(targets["kong-config"] + "/")


def test_render_and_sync_have_the_same_options() -> None:
    different = {"--wait", "60", "--keep-on-failure", "render", "sync"}
    different |= {"--interval=30", "--admin=http://kong-admin:8001", "--probe-host=0.0.0.0"}
    render, sync = (SERVICES[name]["command"] for name in ("kong-render", "kong-sync"))
    assert [w for w in render if w not in different] == [w for w in sync if w not in different]
    assert "--public" in render
    board = next(words for words in command_lines() if words[:2] == ["board", "create"])
    assert "--private" not in board


def test_kong_listens_on_the_expected_addresses_with_safe_settings() -> None:
    image = kong_image()
    assert image["KONG_PROXY_LISTEN"] == "0.0.0.0:8000"
    assert image["KONG_ADMIN_LISTEN"] == "127.0.0.1:8001"
    assert image["KONG_ADMIN_GUI_LISTEN"] == "off"
    assert image["KONG_DATABASE"] == "off"
    assert image["KONG_ANONYMOUS_REPORTS"] == image["KONG_REQUEST_DEBUG"] == "off"
    assert image["KONG_UNTRUSTED_LUA"] == "off"
    assert image["KONG_HEADERS"] == image["KONG_HEADERS_UPSTREAM"] == "X-Kong-Request-Id"


def test_access_logs_are_off() -> None:
    assert kong_image()["KONG_PROXY_ACCESS_LOG"] == kong_image()["KONG_ADMIN_ACCESS_LOG"] == "off"
    assert not [name for name in environment("kong") if name.endswith("ACCESS_LOG")]


def test_the_admin_api_listens_in_a_network_of_kong_and_kong_sync_only() -> None:
    own = SERVICES["kong"]["networks"]["admin"]
    assert environment("kong")["KONG_ADMIN_LISTEN"] == f"{own['ipv4_address']}:8001"
    assert f"--admin=http://{own['aliases'][0]}:8001" in SERVICES["kong-sync"]["command"]
    assert {name for name in SERVICES if "admin" in networks(name)} == {"kong", "kong-sync"}
    network = COMPOSE["networks"]["admin"]
    assert network["internal"] is True
    # The bridge has no address, so the machine has no route to Kong in it.
    assert network["driver_opts"] == {"com.docker.network.bridge.inhibit_ipv4": "true"}
    (pool,), (inside,) = (COMPOSE["networks"][n]["ipam"]["config"] for n in ("admin", "inside"))
    assert IPv4Address(own["ipv4_address"]) in ip_network(pool["subnet"])
    assert IPv4Address(own["ipv4_address"]) not in ip_network(pool["ip_range"])
    assert not ip_network(pool["subnet"]).overlaps(ip_network(inside["subnet"]))


def test_kong_sync_is_unhealthy_when_its_last_success_is_old() -> None:
    """/health/live answers 200 as long as the process runs."""
    assert "/health/ready" in SERVICES["kong-sync"]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("service", ["valkey", "valkey-counters"])
def test_an_error_of_valkey_fails_its_health_check(service: str) -> None:
    """Without -e, valkey-cli exits with 0 after -LOADING."""
    assert SERVICES[service]["healthcheck"]["test"][:3] == ["CMD", "valkey-cli", "-e"]


@every_service
def test_no_limit_on_open_files_is_above_that_of_the_engine(service: str) -> None:
    """A container does not start where the engine's hard limit is lower; programs raise theirs."""
    assert "ulimits" not in SERVICES[service]


def test_the_vault_reference_names_the_variable_of_the_password() -> None:
    variable = kong_config.PASSWORD_REFERENCE.removeprefix("{vault://env/").removesuffix("}")
    name = variable.upper().replace("-", "_")
    assert f"{name}_FILE" in environment("kong")
    script = (ROOT / "deploy/docker/kong-entrypoint.sh").read_text()
    assert f"export {name}\n" in script
    targets = {source: target for source, target, *_ in mounts("kong")}
    assert environment("kong")[f"{name}_FILE"].startswith(targets["secrets-kong"])


def test_prometheus_reads_each_service_under_its_own_name() -> None:
    document = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {
        job["job_name"].removeprefix("scoreboard-"): job["dns_sd_configs"][0]["names"]
        for job in document["scrape_configs"]
        if job["job_name"].startswith("scoreboard-")
    }
    assert jobs == {name: [name] for name in ("api", "admin", "streamer", "flusher", "kong-sync")}
