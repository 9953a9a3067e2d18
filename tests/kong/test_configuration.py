"""The rendered configuration of the gateway, and options that rendering refuses."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from api.edge import cors
from api.endpoints.merged_page import MergedPage
from cli.gateway import config as kong_config
from cli.gateway import keys as kong_keys
from cli.gateway.config import GatewayOptions, render
from cli.gateway.keys import KeyRow, rows_of
from scoreboard.errors import OperatorMistake, SettingInvalid
from scoreboard.runtime.resources import kong_path, web_path
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.settings import load as load_settings
from scoreboard.security.key_set import ALGORITHMS, KID_LENGTH_MAX, parse_keys
from tests.kong.runtime import Gateway, our_plugins

TEMPLATE = (kong_path() / "kong.yml").read_text()
OPTIONS = GatewayOptions(
    issuer="https://issuer.example/",
    audiences=("scoreboard",),
    redis_url="redis://kong@valkey-counters:6379/0",
    origins=("https://play.example",),
    updates_per_minute=10,
    trusted_updates_per_minute=6000,
)
UPDATE, BOARD, USERS = "scores-update", "scores-leaderboard", "scores-users"
BOARDS = "boards"
BULK = "scores-updates"
EVENTS, SOCKET, PAGE = "scores-stream", "ws-scoreboard", "page"
ADMIN, ADMIN_PAGE = "admin", "admin-page"

Entity = dict[str, Any]


@pytest.fixture(scope="module")
def rows(jwks: Entity) -> tuple[KeyRow, ...]:
    return rows_of(parse_keys(msgspec.json.encode(jwks)))


@pytest.fixture(scope="module")
def rendered(rows: tuple[KeyRow, ...]) -> Entity:
    return yaml.safe_load(render(TEMPLATE, rows, OPTIONS))


@pytest.fixture(scope="module")
def public(rows: tuple[KeyRow, ...]) -> Entity:
    return yaml.safe_load(render(TEMPLATE, rows, msgspec.structs.replace(OPTIONS, is_public=True)))


@pytest.fixture(scope="module")
def with_admin(rows: tuple[KeyRow, ...]) -> Entity:
    options = msgspec.structs.replace(OPTIONS, is_public=True, admin_targets=("admin:8000",))
    return yaml.safe_load(render(TEMPLATE, rows, options))


def routes(document: Entity) -> dict[str, Entity]:
    return {route["name"]: route for service in document["services"] for route in service["routes"]}


def service_of(document: Entity, route: str) -> Entity:
    return next(s for s in document["services"] if route in {r["name"] for r in s["routes"]})


def configs(document: Entity, route: str) -> dict[str, Entity]:
    """Return the plugins of a route, by name."""
    return {p["name"]: p["config"] for p in routes(document)[route]["plugins"]}


def every_plugin(document: Entity) -> Iterator[Entity]:
    for route in routes(document).values():
        yield from route["plugins"]
    yield from document["plugins"]


# Plugins of the routes --------------------------------------------------------------------------


@pytest.mark.parametrize("route", [UPDATE, BULK, BOARD, USERS, BOARDS, EVENTS, SOCKET])
def test_a_route_that_requires_a_token_has_jwt_authz_and_a_limit(
    rendered: Entity, route: str
) -> None:
    plugins = configs(rendered, route)
    assert {"jwt", "scoreboard-authz", "rate-limiting"} <= set(plugins)
    assert plugins["rate-limiting"]["limit_by"] == "credential"
    scopes = plugins["scoreboard-authz"]["scopes"]
    assert scopes == {
        UPDATE: ["update:score", "update:score:any"],
        BULK: ["update:score:any"],
    }.get(route, ["read:leaderboard"])
    assert plugins["scoreboard-authz"]["issuer"] == "https://issuer.example/"
    assert plugins["scoreboard-authz"]["audiences"] == ["scoreboard"]


def test_the_limit_of_updates_is_exact_and_not_fault_tolerant(rendered: Entity) -> None:
    limit = configs(rendered, UPDATE)["rate-limiting"]
    assert limit["minute"] == 10
    assert (limit["limit_by"], limit["policy"]) == ("credential", "redis")
    assert limit["sync_rate"] == -1
    assert limit["fault_tolerant"] is False
    assert limit["hide_client_headers"] is False
    assert set(limit) & {"second", "hour", "day"} == set()


def test_game_servers_have_their_own_limit_on_the_same_route(rendered: Entity) -> None:
    (entry,) = [p for p in rendered["plugins"] if p["name"] == "rate-limiting"]
    assert (entry["route"], entry["consumer"]) == (UPDATE, "game-servers")
    player = configs(rendered, UPDATE)["rate-limiting"]
    assert entry["config"] == {**player, "minute": 6000}
    authz = configs(rendered, UPDATE)["scoreboard-authz"]
    assert authz["trusted_consumer"] in {c["username"] for c in rendered["consumers"]}
    assert authz["trusted_scope"] == "update:score:any"


@pytest.mark.parametrize(
    ("updates", "requests"), [(6000, 60), (99, 1), (250, 2), (0, kong_config.UNLIMITED)]
)
def test_a_bulk_request_counts_as_a_hundred_updates(
    rows: tuple[KeyRow, ...], updates: int, requests: int
) -> None:
    options = msgspec.structs.replace(OPTIONS, trusted_updates_per_minute=updates)
    limit = configs(yaml.safe_load(render(TEMPLATE, rows, options)), BULK)["rate-limiting"]
    assert (limit["minute"], limit["limit_by"]) == (requests, "credential")
    assert (limit["sync_rate"], limit["fault_tolerant"]) == (-1, False)


def test_unlimited_game_servers_have_an_entry(rows: tuple[KeyRow, ...]) -> None:
    options = msgspec.structs.replace(OPTIONS, trusted_updates_per_minute=0)
    document = yaml.safe_load(render(TEMPLATE, rows, options))
    (entry,) = [p for p in document["plugins"] if p["name"] == "rate-limiting"]
    assert entry["config"]["minute"] == kong_config.UNLIMITED


def test_limits_of_reads_are_fault_tolerant(rendered: Entity) -> None:
    for route in (BOARD, USERS, EVENTS, SOCKET, PAGE):
        assert configs(rendered, route)["rate-limiting"]["fault_tolerant"] is True, route


def test_many_users_behind_one_address_can_open_the_page(rendered: Entity) -> None:
    limit = configs(rendered, PAGE)["rate-limiting"]
    page = MergedPage(web_path(), "index.html")
    found = re.findall(r'(?:src|href)="/([^"]+)"', page.html(b"{}").decode())
    requests = 1 + len([address for address in found if address.startswith("live.")])
    assert requests == 3
    assert limit["limit_by"] == "ip"
    assert limit["minute"] // requests >= 400
    for route, minute in ((BOARD, 120), (USERS, 120), (EVENTS, 30), (SOCKET, 30)):
        assert configs(rendered, route)["rate-limiting"]["minute"] == minute, route


def test_a_public_board_requires_no_token_and_is_limited_by_address(public: Entity) -> None:
    for route in (BOARD, EVENTS, SOCKET):
        plugins = configs(public, route)
        assert set(plugins) & {"jwt", "scoreboard-authz"} == set()
        assert plugins["rate-limiting"]["limit_by"] == "ip"
    for route in (UPDATE, USERS):
        assert {"jwt", "scoreboard-authz"} <= set(configs(public, route))
        assert configs(public, route)["rate-limiting"]["limit_by"] == "credential"


def test_limits_are_by_address_only_on_routes_without_a_token(
    rendered: Entity, public: Entity
) -> None:
    # Without an identifier Kong uses the client's address: one counter for many users.
    for document in (rendered, public):
        for name in routes(document):
            plugins = configs(document, name)
            by_address = plugins["rate-limiting"]["limit_by"] == "ip"
            assert by_address is ("scoreboard-authz" not in plugins), name


def test_jwt_reads_tokens_only_from_authorization(rendered: Entity, with_admin: Entity) -> None:
    found = [p["config"] for p in every_plugin(rendered) if p["name"] == "jwt"]
    assert len(found) == 7
    found.append(configs(with_admin, ADMIN)["jwt"])
    for config in found:
        assert config["header_names"] == ["authorization"]
        assert (config["uri_param_names"], config["cookie_names"]) == ([], [])
        assert config["key_claim_name"] == "kid"
        assert config["claims_to_verify"] == ["exp"]
        assert config["maximum_expiration"] == OPTIONS.token_life_s
        assert config["run_on_preflight"] is True
        assert "anonymous" not in config


def test_the_websocket_route_has_its_own_intake_and_the_others_the_global_one(
    rendered: Entity,
) -> None:
    (everywhere,) = [p for p in rendered["plugins"] if p["name"] == "scoreboard-intake"]
    assert set(everywhere) == {"name", "config"}
    socket = configs(rendered, SOCKET)["scoreboard-intake"]
    assert socket["subprotocol"] == "scoreboard.v1"
    for config in (socket, configs(rendered, EVENTS)["scoreboard-intake"]):
        assert config["allowed_origins"] == ["https://play.example"]
        assert config["algorithms"] == everywhere["config"]["algorithms"] == list(ALGORITHMS)


def test_without_origins_the_gateway_does_not_check_origins(rows: tuple[KeyRow, ...]) -> None:
    document = yaml.safe_load(render(TEMPLATE, rows, msgspec.structs.replace(OPTIONS, origins=())))
    assert "allowed_origins" not in configs(document, SOCKET)["scoreboard-intake"]
    assert "scoreboard-intake" not in configs(document, EVENTS)


def test_bodies_of_updates_are_limited_to_what_the_api_accepts(rendered: Entity) -> None:
    sizes = {UPDATE: 4, BULK: 16}
    for route in routes(rendered):
        config = configs(rendered, route).get("request-size-limiting")
        assert (config is not None) is (route in sizes)
    for route, size in sizes.items():
        assert configs(rendered, route)["request-size-limiting"] == {
            "allowed_payload_size": size,
            "size_unit": "kilobytes",
            "require_content_length": False,
        }
    body_bytes = Settings.__struct_defaults__[_position("body_bytes")]
    assert sizes[BULK] * 1024 == body_bytes


def test_the_configurations_match_the_schemas_of_the_plugins(
    gateway: Gateway, rendered: Entity, public: Entity, with_admin: Entity
) -> None:
    seen = set()
    for document in (rendered, public, with_admin, _template()):
        for plugin in every_plugin(document):
            if plugin["name"] in our_plugins():
                gateway.config(plugin["name"], plugin["config"])
                seen.add(plugin["name"])
    assert seen == set(our_plugins())


def test_the_documented_plugin_for_traces_can_be_added(rows: tuple[KeyRow, ...]) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/trace.md").read_text()
    [entry] = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    template = _template()
    template["plugins"].append(entry)

    document = yaml.safe_load(render(yaml.dump(template), rows, OPTIONS))

    assert entry in document["plugins"]
    # As in kong/plugins/opentelemetry/schema.lua: what a client sends is not read, only replaced.
    propagation = entry["config"]["propagation"]
    assert "extract" not in propagation
    assert propagation["inject"] == ["w3c"]
    assert set(entry["config"]) == {
        "traces_endpoint", "sampling_rate", "resource_attributes", "propagation",
    }  # fmt: skip


# Routes and services ----------------------------------------------------------------------------

TABLE = [
    ("POST", "/api/scores/update", UPDATE),
    ("GET", "/api/scores/leaderboard", BOARD),
    ("GET", "/api/scores/users/alice", USERS),
    ("GET", "/api/scores/users/auth0|64f1", USERS),
    ("GET", "/api/boards", BOARDS),
    ("GET", "/api/boards/a.b_c-9", BOARDS),
    ("POST", "/api/scores/updates", BULK),
    ("GET", "/api/scores/users", USERS),
    ("GET", "/api/scores/me", USERS),
    ("HEAD", "/api/scores/me", USERS),
    ("GET", "/api/scores/rank", USERS),
    ("GET", "/api/scores/cutoff", USERS),
    ("GET", "/api/scores/users/alice/history", USERS),
    ("GET", "/api/scores/users/auth0|64f1/history", USERS),
    ("GET", "/api/scores/leaderboard", BOARD),
    ("GET", "/api/scores/users/alice", USERS),
    ("GET", "/api/scores/users/auth0|64f1", USERS),
    ("GET", "/api/scores/stream", EVENTS),
    ("GET", "/ws/scoreboard", SOCKET),
    ("GET", "/", PAGE),
    ("GET", "/docs", PAGE),
    ("GET", "/docs/", PAGE),
    ("GET", "/embed", PAGE),
    ("GET", "/embed.js", PAGE),
    ("GET", "/overlay", PAGE),
    ("GET", "/oembed", PAGE),
    ("GET", "/docs/problems/busy", PAGE),
    ("GET", "/openapi.json", PAGE),
    ("GET", "/config.json", PAGE),
    ("GET", "/live.js", PAGE),
    ("GET", "/vendor/uqr/index.mjs", PAGE),
    ("HEAD", "/", PAGE),
    ("HEAD", "/docs/problems/busy", PAGE),
    ("HEAD", "/api/boards", BOARDS),
    ("HEAD", "/api/scores/leaderboard", BOARD),
    ("HEAD", "/api/scores/users/alice", USERS),
]


def matches(document: Entity, method: str, path: str) -> list[str]:
    """Return the routes that Kong could choose; a `~` path is a regex without an end anchor."""
    found = []
    for name, route in routes(document).items():
        for pattern in route["paths"]:
            is_match = (
                re.match(pattern[1:], path) if pattern[0] == "~" else path.startswith(pattern)
            )
            if is_match and method in route["methods"]:
                found.append(name)
                break
    return found


@pytest.mark.parametrize(("method", "path", "route"), TABLE)
def test_every_public_path_has_one_route(
    rendered: Entity, method: str, path: str, route: str
) -> None:
    assert matches(rendered, method, path) == [route]


def page_files() -> list[str]:
    files = [path for path in web_path().rglob("*") if path.is_file() and path.name[0] != "."]
    return sorted(path.relative_to(web_path()).as_posix() for path in files)


@pytest.mark.parametrize("file", page_files())
def test_every_file_of_the_page_is_reachable(
    rendered: Entity, with_admin: Entity, file: str
) -> None:
    if file.startswith("admin/"):
        assert matches(rendered, "GET", f"/{file}") == []
        assert matches(with_admin, "GET", f"/{file}") == [ADMIN_PAGE]
    else:
        assert matches(rendered, "GET", f"/{file}") == [PAGE]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/metrics"),
        ("POST", "/config"),
        ("GET", "/status"),
        ("GET", "/api/scores/update"),
        ("DELETE", "/api/scores/update"),
        ("OPTIONS", "/api/scores/updates"),
        ("HEAD", "/api/scores/update"),
        ("HEAD", "/api/scores/stream"),
        ("HEAD", "/ws/scoreboard"),
        ("TRACE", "/"),
        ("GET", "/api/scores/updates"),
        ("POST", "/api/scores/updates/"),
        ("POST", "/api/scores/users"),
        ("GET", "/api/scores/rank/"),
        ("GET", "/api/scores/mex"),
        ("POST", "/api/scores/update/"),
        ("POST", "/x/api/scores/update"),
        ("GET", "/api/scores/leaderboard/metrics"),
        ("POST", "/api/boards"),
        ("GET", "/api/boards/"),
        ("GET", "/api/boards/weekly/scores"),
        ("GET", "/api/scores/usersx"),
        ("GET", "/ws/scoreboard/health"),
        ("GET", "/anything"),
        ("GET", "/docsx"),
        ("GET", "/.env"),
        ("GET", "/page.js.map"),
    ],
)
def test_other_paths_and_methods_have_no_route(rendered: Entity, method: str, path: str) -> None:
    assert matches(rendered, method, path) == []


def test_without_a_target_there_is_nothing_of_administrators(rendered: Entity) -> None:
    for method, path in ADMIN_TABLE:
        assert matches(rendered, method, path) == [], path
    assert "admin" not in yaml.dump(rendered)


ADMIN_TABLE = {
    ("GET", "/api/admin/acts"): ADMIN,
    ("POST", "/api/admin/acts"): ADMIN,
    ("POST", "/api/admin/acts/0123456789abcdef/resume"): ADMIN,
    ("GET", "/api/admin/users/auth0|64f1/history"): ADMIN,
    ("PATCH", "/api/admin/boards/weekly"): ADMIN,
    ("GET", "/admin"): ADMIN_PAGE,
    ("HEAD", "/admin/"): ADMIN_PAGE,
    ("GET", "/admin/page.js"): ADMIN_PAGE,
}


@pytest.mark.parametrize(("method", "path"), ADMIN_TABLE)
def test_administrators_have_an_api_of_their_own(
    with_admin: Entity, method: str, path: str
) -> None:
    assert matches(with_admin, method, path) == [ADMIN_TABLE[method, path]]
    assert service_of(with_admin, ADMIN) is service_of(with_admin, ADMIN_PAGE)
    upstream = next(u for u in with_admin["upstreams"] if u["name"] == "scoreboard-admin.upstream")
    assert upstream["targets"] == [{"target": "admin:8000"}]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/admin/boards/weekly"),
        ("PUT", "/api/admin/boards/weekly"),
        ("OPTIONS", "/api/admin/acts"),
        ("GET", "/api/admin"),
        ("GET", "/api/administrators"),
        ("GET", "/x/api/admin/acts"),
        ("POST", "/admin"),
        ("GET", "/adminx"),
    ],
)
def test_other_requests_of_administrators_have_no_route(
    with_admin: Entity, method: str, path: str
) -> None:
    assert matches(with_admin, method, path) == []


def test_administrators_need_their_scope_also_if_boards_are_public(with_admin: Entity) -> None:
    plugins = configs(with_admin, ADMIN)
    assert plugins["scoreboard-authz"] == {
        "issuer": "https://issuer.example/",
        "audiences": ["scoreboard"],
        "scopes": ["admin:scores"],
    }
    limit = plugins["rate-limiting"]
    assert (limit["limit_by"], limit["minute"], limit["sync_rate"]) == ("credential", 240, -1)
    assert limit["fault_tolerant"] is True
    assert limit["redis"] == configs(with_admin, UPDATE)["rate-limiting"]["redis"]
    body = plugins["request-size-limiting"]
    assert body == configs(with_admin, BULK)["request-size-limiting"]
    page = configs(with_admin, ADMIN_PAGE)
    assert set(page) == {"rate-limiting"}
    assert page["rate-limiting"]["limit_by"] == "ip"


def test_other_origins_have_no_access_to_administration(rows: tuple[KeyRow, ...]) -> None:
    options = msgspec.structs.replace(
        OPTIONS, cors_origins=("https://shop.example",), admin_targets=("admin:8000",)
    )
    document = yaml.safe_load(render(TEMPLATE, rows, options))
    for name in (ADMIN, ADMIN_PAGE):
        assert "cors" not in configs(document, name)
        assert "OPTIONS" not in routes(document)[name]["methods"]


def test_a_template_of_an_earlier_version_cannot_have_administrators(
    rows: tuple[KeyRow, ...], rendered: Entity
) -> None:
    """It would ignore the option, and the administrators would get 404."""
    options = msgspec.structs.replace(OPTIONS, admin_targets=("admin:8000",))
    with pytest.raises(OperatorMistake, match="admin-target"):
        render(yaml.dump(rendered), rows, options)


def test_an_act_is_waited_for_and_not_repeated(with_admin: Entity) -> None:
    service = service_of(with_admin, ADMIN)
    assert service["read_timeout"] > service_of(with_admin, UPDATE)["read_timeout"]
    assert service["retries"] == 0


def test_services_and_routes_have_unique_names(rendered: Entity) -> None:
    names = [s["name"] for s in rendered["services"]] + list(routes(rendered))
    assert len(names) == len(set(names))
    assert sum(len(s["routes"]) for s in rendered["services"]) == len(routes(rendered)) == 8


def test_routes_do_not_change_paths_and_hosts(with_admin: Entity) -> None:
    prefixes = {"/api/scores/users/", "/api/admin/"}
    for name, route in routes(with_admin).items():
        assert route["strip_path"] is False, name
        assert route["preserve_host"] is True, name
        assert route["protocols"] == ["http", "https"], name
        for path in route["paths"]:
            assert path.endswith("$") or path in prefixes, path


def test_timeouts_of_streams_exceed_the_heartbeat_and_requests_are_not_repeated(
    rendered: Entity,
) -> None:
    heartbeat_ms = Settings.__struct_defaults__[_position("heartbeat_s")] * 1000
    for route in (SOCKET, EVENTS):
        service = service_of(rendered, route)
        assert service["read_timeout"] > 3 * heartbeat_ms
        assert service["retries"] == 0
    api = service_of(rendered, UPDATE)
    assert (api["connect_timeout"], api["read_timeout"], api["retries"]) == (1000, 5000, 1)
    assert routes(rendered)[EVENTS]["response_buffering"] is False


def _position(field: str) -> int:
    required = 1
    return Settings.__struct_fields__.index(field) - required


def test_targets_have_active_checks_and_stay_healthy_after_a_503(with_admin: Entity) -> None:
    hosts = {service["host"] for service in with_admin["services"]}
    upstreams = {upstream["name"]: upstream for upstream in with_admin["upstreams"]}
    assert hosts == set(upstreams)
    for name, upstream in upstreams.items():
        checks = upstream["healthchecks"]
        assert checks["active"]["healthy"]["interval"] > 0, name  # passive checks do not recover
        assert checks["active"].get("http_path", "/health/live") == "/health/live"
        assert checks["passive"]["unhealthy"].get("http_failures", 0) == 0
    assert upstreams["scoreboard-api.upstream"]["targets"] == [{"target": "api:8000"}]


def test_several_targets_share_one_upstream(rows: tuple[KeyRow, ...]) -> None:
    options = msgspec.structs.replace(OPTIONS, api_targets=("b:1", "a:1", "b:1"))
    document = yaml.safe_load(render(TEMPLATE, rows, options))
    assert document["upstreams"][0]["targets"] == [{"target": "a:1"}, {"target": "b:1"}]
    assert document["upstreams"][1]["targets"] == [{"target": "streamer:8001"}]


def test_cors_origins_add_cors_and_options(rows: tuple[KeyRow, ...]) -> None:
    options = msgspec.structs.replace(OPTIONS, cors_origins=("https://shop.example",))
    document = yaml.safe_load(render(TEMPLATE, rows, options))
    for name, route in routes(document).items():
        plugins = configs(document, name)
        assert ("OPTIONS" in route["methods"]) is ("cors" in plugins), name
        assert ("cors" in plugins) is (name in kong_config.CORS_ROUTES)
    cors = configs(document, UPDATE)["cors"]
    assert cors["origins"] == ["https://play.example", "https://shop.example"]
    assert cors["credentials"] is False
    assert {"Retry-After", "ETag", "X-Kong-Request-Id"} <= set(cors["exposed_headers"])


def test_pages_of_listed_origins_may_call_the_api_without_an_option(rendered: Entity) -> None:
    assert configs(rendered, UPDATE)["cors"]["origins"] == ["https://play.example"]


def test_the_gateway_allows_and_exposes_what_the_api_does(rendered: Entity) -> None:
    """Kong's plugin replaces the api's headers."""
    cors_config = configs(rendered, UPDATE)["cors"]
    assert set(cors_config["methods"]) == {*cors.METHODS, "OPTIONS"}
    assert set(cors_config["headers"]) == set(cors.REQUEST_HEADERS)
    assert set(cors.EXPOSED_HEADERS) <= set(cors_config["exposed_headers"])
    assert cors_config["max_age"] == cors.MAX_AGE_S


def test_without_origins_there_is_no_options_route(rows: tuple[KeyRow, ...]) -> None:
    document = yaml.safe_load(render(TEMPLATE, rows, msgspec.structs.replace(OPTIONS, origins=())))
    for name, route in routes(document).items():
        assert "OPTIONS" not in route["methods"], name
        assert "cors" not in configs(document, name)


def test_metrics_have_no_consumers(rendered: Entity) -> None:
    (config,) = [p["config"] for p in rendered["plugins"] if p["name"] == "prometheus"]
    assert config["per_consumer"] is False
    assert config["status_code_metrics"] is True
    assert config["latency_metrics"] is True


# Counters and secrets ---------------------------------------------------------------------------


def test_all_limits_use_the_same_redis_for_counters(rendered: Entity) -> None:
    found = [p["config"]["redis"] for p in every_plugin(rendered) if p["name"] == "rate-limiting"]
    assert len(found) == 9
    assert all(redis == found[0] for redis in found)  # Kong's pools ignore users
    assert found[0] == {
        "host": "valkey-counters",
        "port": 6379,
        "database": 0,
        "username": "kong",
        "password": "{vault://env/redis-password}",
        "timeout": 250,
    }


def test_a_password_in_the_url_is_not_in_the_file(rows: tuple[KeyRow, ...]) -> None:
    for url in ("redis://kong:hunter2@valkey/1", "rediss://:hunter2@valkey:6380"):
        text = render(TEMPLATE, rows, msgspec.structs.replace(OPTIONS, redis_url=url))
        assert "hunter2" not in text
        assert "{vault://env/redis-password}" in text


def test_a_redis_without_a_password_has_no_vault_reference(rows: tuple[KeyRow, ...]) -> None:
    options = msgspec.structs.replace(OPTIONS, redis_url="redis://valkey:6379")
    assert "vault" not in render(TEMPLATE, rows, options)


def test_tls_to_the_counters_is_verified(rows: tuple[KeyRow, ...]) -> None:
    options = msgspec.structs.replace(OPTIONS, redis_url="rediss://kong@cache.example:6380/2")
    document = yaml.safe_load(render(TEMPLATE, rows, options))
    redis = configs(document, UPDATE)["rate-limiting"]["redis"]
    assert (redis["ssl"], redis["ssl_verify"]) == (True, True)
    assert (redis["server_name"], redis["port"]) == ("cache.example", 6380)


def test_secrets_are_vault_references(rendered: Entity) -> None:
    def walk(value: object, key: str = "") -> Iterator[tuple[str, object]]:
        if isinstance(value, dict):
            for name, item in value.items():
                yield from walk(item, name)
        elif isinstance(value, list):
            for item in value:
                yield from walk(item, key)
        else:
            yield key, value

    for key, value in walk(rendered):
        if re.search(r"password|secret|private|token$", key):
            assert str(value).startswith("{vault://env/"), key
        assert "PRIVATE KEY" not in str(value)


# Keys -------------------------------------------------------------------------------------------


def test_every_key_has_its_algorithm_and_a_valid_pem(rendered: Entity, jwks: Entity) -> None:
    players = next(c for c in rendered["consumers"] if c["username"] == "players")
    secrets = players["jwt_secrets"]
    assert [s["key"] for s in secrets] == sorted(jwk["kid"] for jwk in jwks["keys"])
    for secret in secrets:
        assert secret["algorithm"] in ALGORITHMS
        key = load_pem_public_key(secret["rsa_public_key"].encode())
        assert (
            type(key).__name__
            == {"RS256": "RSAPublicKey", "ES256": "ECPublicKey"}[secret["algorithm"]]
        )


def test_only_the_consumer_players_has_keys(rendered: Entity) -> None:
    assert [c["username"] for c in rendered["consumers"]] == ["players", "game-servers"]
    assert "jwt_secrets" not in rendered["consumers"][1]


def test_render_refuses_an_empty_list_of_keys() -> None:
    with pytest.raises(ValueError, match="keys"):
        render(TEMPLATE, (), OPTIONS)


def test_render_refuses_an_algorithm_that_no_service_verifies() -> None:
    with pytest.raises(ValueError, match="HS256"):
        render(TEMPLATE, (KeyRow("k", "HS256", "x"),), OPTIONS)


def test_the_gateway_has_the_services_limit_of_a_kid(gateway: Gateway) -> None:
    source = (kong_path() / "plugins/scoreboard-intake/handler.lua").read_text()
    assert f"KID_MAX_BYTES = {KID_LENGTH_MAX}\n" in source
    assert kong_keys.PLAYERS == "players"


# The text ---------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(rows: tuple[KeyRow, ...]) -> None:
    first = render(TEMPLATE, rows, OPTIONS)
    assert render(TEMPLATE, tuple(reversed(rows)), OPTIONS) == first
    assert first.startswith("# Written by `scoreboard kong render`")
    lines = first.splitlines()[1:]
    assert not [line for line in lines if re.search(r"[:-] [&*]|^#", line)]  # no anchors
    assert "BEGIN PUBLIC KEY-----\n" in first


def test_rendered_keys_can_be_read_back(rows: tuple[KeyRow, ...]) -> None:
    retired = msgspec.structs.replace(rows[0], retired_at_s=1_700_000_000)
    text = render(TEMPLATE, (retired, *rows[1:]), OPTIONS)
    assert set(kong_keys.rows_in(text)) == {retired, *rows[1:]}


def _template() -> Entity:
    return yaml.safe_load(TEMPLATE)


def test_the_template_has_no_key_and_no_issuer() -> None:
    assert _template()["consumers"][0]["jwt_secrets"] == []
    issuers = {
        p["config"]["issuer"] for p in every_plugin(_template()) if p["name"] == "scoreboard-authz"
    }
    assert issuers == {"https://issuer.invalid/"}


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": ""},
        {"audiences": ("",)},
        {"redis_url": "unix:///tmp/redis.sock"},
        {"redis_url": "redis://"},
        {"redis_url": "redis://valkey/board"},
        {"redis_url": "redis://valkey:port"},
        {"origins": ("*",)},
        {"origins": ("https://play.example/",)},
        {"origins": ("HTTPS://play.example",)},
        {"cors_origins": ("https://.*\\.example",)},
        {"api_targets": ()},
        {"api_targets": ("http://api:8000",)},
        {"streamer_targets": ("streamer",)},
        {"admin_targets": ("admin",)},
        {"updates_per_minute": 0},
        {"trusted_updates_per_minute": -1},
        {"token_life_s": 0},
        {"token_life_s": 31_536_001},
    ],
)
def test_invalid_options_are_refused(rows: tuple[KeyRow, ...], change: dict[str, Any]) -> None:
    with pytest.raises(SettingInvalid):
        render(TEMPLATE, rows, msgspec.structs.replace(OPTIONS, **change))


def test_the_gateway_uses_the_settings_of_the_services() -> None:
    settings = load_settings(
        {
            "REDIS_URL": "redis://kong@valkey-counters:6379/0",
            "SCOREBOARD_ISSUER": "https://issuer.example/",
            "SCOREBOARD_AUDIENCE": "game",
            "SCOREBOARD_ORIGINS": "https://a.example,https://b.example",
            "SCOREBOARD_UPDATES_PER_MINUTE": "7",
            "SCOREBOARD_TRUSTED_UPDATES_PER_MINUTE": "70",
        }
    )
    options = GatewayOptions.of(settings, is_public=True)
    assert (options.issuer, options.audiences) == ("https://issuer.example/", ("game",))
    assert options.origins == ("https://a.example", "https://b.example")
    assert (options.updates_per_minute, options.trusted_updates_per_minute) == (7, 70)
    assert (options.redis_url, options.is_public) == ("redis://kong@valkey-counters:6379/0", True)
