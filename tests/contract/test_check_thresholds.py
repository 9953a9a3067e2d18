"""The checks of `scoreboard status` and the alerts agree on what needs action."""

import re
from pathlib import Path

import pytest

from scoreboard.health import checks

ROOT = Path(__file__).parents[2]
RULES = "\n".join(
    path.read_text() for path in sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
)
SOURCES = [ROOT / "scoreboard/health/checks.py", ROOT / "cli/system_status.py"]


@pytest.mark.parametrize(
    ("alert", "limit_s"),
    [
        ("StreamBacklogOld", checks.BEHIND_S),
        ("BackupOverdue", checks.BACKUP_S),
        ("SecretStale", checks.SECRET_UNREAD_S),
        ("RotationOverdue", checks.SECRET_AGE_S),
    ],
)
def test_a_limit_is_that_of_the_alert(alert: str, limit_s: float) -> None:
    found = re.search(rf"alert: {alert}\n\s+expr: .* > ([\d *]+)$", RULES, re.MULTILINE)

    assert found, f"{alert} has no limit"
    product = 1
    for factor in found[1].split("*"):
        product *= int(factor)
    assert product == limit_s


def test_every_alert_that_a_check_names_exists() -> None:
    text = "\n".join(path.read_text() for path in SOURCES)
    named = set(re.findall(r"""(?:runbook\(|alert=|": )["']([A-Z]\w+)["']""", text))

    assert named >= {"RedisDown", "PostgresDown", "FlusherDown", "BoardStale"}
    assert named <= set(re.findall(r"alert: (\w+)", RULES))
