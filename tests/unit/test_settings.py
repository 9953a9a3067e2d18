"""Settings: defaults first, then what is refused, by name."""

import pytest

from scoreboard.errors import SettingInvalid
from scoreboard.settings import Secret, Settings, describe, load

LEAST = {"REDIS_URL": "redis://:hidden@localhost"}


def test_the_defaults_load_and_are_safe() -> None:
    settings = load(LEAST)

    assert settings == Settings(redis_url=Secret("redis://:hidden@localhost"))
    assert settings.unsafe_redis is False
    assert settings.boards == ("main",)
    assert settings.api_host == settings.ws_host == settings.metrics_host == "127.0.0.1"


def test_an_empty_variable_is_not_set() -> None:
    assert load(LEAST | {"SCOREBOARD_API_PORT": ""}).api_port == 8000


def test_lists_booleans_and_numbers_are_read() -> None:
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
        (LEAST | {"SCOREBOARD_API_PORT": "tcp://10.0.0.1:80"}, "SCOREBOARD_API_PORT"),
        (LEAST | {"SCOREBOARD_API_PORT": "70000"}, "SCOREBOARD_API_PORT"),
        (LEAST | {"SCOREBOARD_DRAIN_S": "0"}, "SCOREBOARD_DRAIN_S"),
        (LEAST | {"SCOREBOARD_RATE_LIMIT": "none"}, "SCOREBOARD_RATE_LIMIT"),
        (LEAST | {"SCOREBOARD_BOARDS": "Main"}, "SCOREBOARD_BOARDS"),
        (LEAST | {"SCOREBOARD_UNSAFE_REDIS": "perhaps"}, "SCOREBOARD_UNSAFE_REDIS"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(environ: dict[str, str], name: str) -> None:
    with pytest.raises(SettingInvalid, match=name):
        load(environ)


def test_secrets_show_as_stars() -> None:
    settings = load(LEAST)

    assert "hidden" not in repr(settings)
    assert "hidden" not in str(settings.redis_url)
    assert "hidden" not in f"{settings.redis_url}"


def test_every_setting_is_described() -> None:
    described = list(describe())

    assert len(described) == len(Settings.__struct_fields__)
    assert all(text and name for name, text, _ in described)
