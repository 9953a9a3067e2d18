""".env.example matches the settings."""

from pathlib import Path

from cli.commands.config import render_example
from scoreboard.runtime import settings

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def test_the_example_matches_the_settings() -> None:
    assert EXAMPLE.read_text() == render_example(), "run: make env"


def test_the_example_uncommented_is_accepted_and_changes_nothing() -> None:
    lines = [line.removeprefix("# ") for line in EXAMPLE.read_text().splitlines()]
    given = dict(line.split("=", 1) for line in lines if "=" in line and " " not in line)

    loaded = settings.load(given)

    assert len(given) == len(list(settings.describe()))
    addresses = ("redis_url", "database_url")
    plain = settings.Settings(**{name: getattr(loaded, name) for name in addresses})
    assert loaded == plain
