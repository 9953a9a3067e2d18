"""Settings: defaults, parsing, and errors that name the variable."""

import pytest

from scoreboard.errors import SettingInvalid
from scoreboard.runtime.settings import Secret, Settings, describe, load, service_links

LEAST = {"REDIS_URL": "redis://:hidden@localhost"}


def test_the_defaults_load_and_are_safe() -> None:
    settings = load(LEAST)

    assert settings == Settings(redis_url=Secret("redis://:hidden@localhost"))
    assert settings.unsafe_redis is False
    assert settings.boards == ("main",)
    assert settings.api_host == settings.ws_host == settings.metrics_host == "127.0.0.1"


def test_one_address_can_hold_half_of_the_requests_at_most() -> None:
    settings = load(LEAST)

    assert 2 * settings.connections_per_address <= settings.requests_in_flight


def test_an_empty_variable_is_not_set() -> None:
    assert load(LEAST | {"SCOREBOARD_API_PORT": ""}).api_port == 8000


def test_lists_booleans_and_numbers_are_parsed() -> None:
    settings = load(
        LEAST
        | {
            "SCOREBOARD_BOARDS": "main,weekly",
            "SCOREBOARD_UNSAFE_REDIS": "true",
            "SCOREBOARD_DRAIN_S": "2.5",
            "DATABASE_URL": "postgresql://u:p@h/d",
        }
    )

    assert settings.boards == ("main", "weekly")
    assert settings.unsafe_redis is True
    assert settings.drain_s == 2.5
    assert settings.database_url.reveal() == "postgresql://u:p@h/d"


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "REDIS_URL"),
        (LEAST | {"SCOREBOARD_TYPO": "1"}, "SCOREBOARD_TYPO"),
        (LEAST | {"SCOREBOARD_DRAIN_S": "inf"}, "SCOREBOARD_DRAIN_S"),
        (LEAST | {"SCOREBOARD_DATABASE_TIMEOUT_S": "1e300"}, "SCOREBOARD_DATABASE_TIMEOUT_S"),
        (LEAST | {"SCOREBOARD_API_PORT": "http://10.0.0.1:80"}, "SCOREBOARD_API_PORT"),
        (LEAST | {"SCOREBOARD_API_PORT": "tcp://api:80"}, "SCOREBOARD_API_PORT"),
        (LEAST | {"SCOREBOARD_API_HOSTS": "10.0.0.1"}, "SCOREBOARD_API_HOSTS"),
        (LEAST | {"SCOREBOARD_API_SERVICE_HOST": "api.example"}, "SCOREBOARD_API_SERVICE_HOST"),
        (LEAST | {"SCOREBOARD_API_SERVICE_HOST_X": "10.0.0.1"}, "SCOREBOARD_API_SERVICE_HOST_X"),
        (LEAST | {"SCOREBOARD_API_PORT_8000_TCPX": "tcp://10.0.0.1:80"}, "_TCPX"),
        (LEAST | {"SCOREBOARD_METRICS_PORTS": "9100"}, "SCOREBOARD_METRICS_PORTS"),
        (LEAST | {"SCOREBOARD_API_PORT": "70000"}, "SCOREBOARD_API_PORT"),
        (LEAST | {"SCOREBOARD_DRAIN_S": "0"}, "SCOREBOARD_DRAIN_S"),
        (LEAST | {"SCOREBOARD_RATE_LIMIT": "none"}, "SCOREBOARD_RATE_LIMIT"),
        (LEAST | {"SCOREBOARD_BOARDS": "Main"}, "SCOREBOARD_BOARDS"),
        (LEAST | {"SCOREBOARD_BOARDS": "main,.."}, "item 2 must be 1 to 32 characters of a-z"),
        (LEAST | {"SCOREBOARD_BOARDS": "main,a,main"}, "BOARDS: main is listed more than once"),
        (LEAST | {"SCOREBOARD_UNSAFE_REDIS": "perhaps"}, "SCOREBOARD_UNSAFE_REDIS"),
    ],
)
def test_an_invalid_setting_is_refused_by_name(environ: dict[str, str], name: str) -> None:
    with pytest.raises(SettingInvalid, match=name):
        load(environ)


def test_secrets_are_not_printed() -> None:
    settings = load(LEAST)

    assert "hidden" not in repr(settings)
    assert "hidden" not in str(settings.redis_url)
    assert "hidden" not in f"{settings.redis_url}"


def test_every_setting_is_described() -> None:
    described = list(describe())

    assert len(described) == len(Settings.__struct_fields__)
    assert all(text and name for name, text, _ in described)


def test_an_unknown_setting_is_refused_with_the_closest_name() -> None:
    with pytest.raises(SettingInvalid, match=r"SCOREBOARD_API_PRT .* did you mean .*_API_PORT\?"):
        load(LEAST | {"SCOREBOARD_API_PRT": "8000"})


def test_the_service_links_of_kubernetes_are_not_settings() -> None:
    # What kubelet sets for the Services `scoreboard`, `scoreboard-api` and (IPv6) `scoreboard-ws`.
    links = {
        "SCOREBOARD_SERVICE_HOST": "10.0.0.1",
        "SCOREBOARD_SERVICE_PORT": "80",
        "SCOREBOARD_PORT": "tcp://10.0.0.1:80",
        "SCOREBOARD_PORT_80_TCP": "tcp://10.0.0.1:80",
        "SCOREBOARD_PORT_80_TCP_PROTO": "tcp",
        "SCOREBOARD_PORT_80_TCP_PORT": "80",
        "SCOREBOARD_PORT_80_TCP_ADDR": "10.0.0.1",
        "SCOREBOARD_API_SERVICE_HOST": "10.96.7.20",
        "SCOREBOARD_API_SERVICE_PORT": "8000",
        "SCOREBOARD_API_SERVICE_PORT_HTTP": "8000",
        "SCOREBOARD_API_SERVICE_PORT_WEB_METRICS": "9100",
        "SCOREBOARD_API_PORT": "tcp://10.96.7.20:8000",
        "SCOREBOARD_API_PORT_8000_TCP": "tcp://10.96.7.20:8000",
        "SCOREBOARD_API_PORT_8000_TCP_PROTO": "tcp",
        "SCOREBOARD_API_PORT_8000_TCP_PORT": "8000",
        "SCOREBOARD_API_PORT_8000_TCP_ADDR": "10.96.7.20",
        "SCOREBOARD_WS_SERVICE_HOST": "fd00::7:1",
        "SCOREBOARD_WS_PORT": "tcp://[fd00::7:1]:8001",
        "SCOREBOARD_WS_PORT_8001_TCP": "tcp://[fd00::7:1]:8001",
        "SCOREBOARD_WS_PORT_8001_TCP_ADDR": "fd00::7:1",
        "SCOREBOARD_WS_PORT_53_UDP_PROTO": "udp",
    }

    assert load(LEAST | links) == load(LEAST)
    assert service_links(LEAST | links) == sorted(links)
    assert service_links(LEAST | {"SCOREBOARD_API_PORT": "8000", "PORT": "80"}) == []
