""".env.example matches the settings."""

from pathlib import Path

from cli.commands.config import render_example
from scoreboard.runtime import settings

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / ".env.example"
VARIABLES = ROOT / "deploy/docker/variables.env"


def test_the_example_matches_the_settings() -> None:
    assert EXAMPLE.read_text() == render_example() + VARIABLES.read_text(), "run: make env"


def test_the_example_uncommented_is_accepted_and_changes_nothing() -> None:
    lines = [line.removeprefix("# ") for line in render_example().splitlines()]
    given = dict(line.split("=", 1) for line in lines if "=" in line and " " not in line)

    loaded = settings.load(given)

    assert len(given) == len(list(settings.describe()))
    addresses = ("redis_url", "database_url")
    plain = settings.Settings(**{name: getattr(loaded, name) for name in addresses})
    assert loaded == plain
