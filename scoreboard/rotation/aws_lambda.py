"""The rotation function that AWS Secrets Manager calls (AWS Lambda, Python).

Configure ``scoreboard.rotation.aws_lambda.handler``. Secrets Manager calls it once per step, and
may repeat a step. A schedule calls it with ``{"Step": "retireSecret", "SecretIds": [...]}``. The
environment contains the settings of the rotator, and in ``REDIS_REPLICAS`` the addresses of further
nodes of Redis, separated by spaces. Source of the protocol: AWS Secrets Manager User
Guide, "Lambda rotation functions".
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from scoreboard.errors import OperatorMistake, ScoreboardError
from scoreboard.rotation.kinds import kind_of, make_rotation
from scoreboard.rotation.steps import Rotation
from scoreboard.runtime import settings as settings_module
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger, setup_logging

RETIRE: Final = "retireSecret"

_log = get_logger(__name__)


def handler(event: Mapping[str, Any], context: object = None) -> dict[str, str]:
    """Run one step; return what was done by secret.

    Raises OperatorMistake, RotationFailed, Unavailable: Secrets Manager then repeats the rotation
    later, and the current version stays in use.
    """
    del context
    settings = settings_module.load(os.environ)
    setup_logging(
        "rotation", level=settings.log_level, form="json", environment=settings.environment
    )
    if event.get("Step") == RETIRE:
        return asyncio.run(_retire(settings, event["SecretIds"]))
    secret, token = event["SecretId"], event["ClientRequestToken"]
    try:
        return {secret: asyncio.run(_step(_rotation(settings, secret), event["Step"], token))}
    except ScoreboardError as error:
        _log.error("secret_rotation_failed", name=secret, step=event["Step"], reason=error.detail)
        raise


async def _step(rotation: Rotation, step: str, token: str) -> str:
    found = await rotation.describe()
    if found.current == token:
        return "done before"
    if found.pending != token:
        raise OperatorMistake(f"{token} is not the pending version of {rotation.name}")
    match step:
        case "createSecret":
            await rotation.create(token)
        case "setSecret":
            await rotation.set(token)
        case "testSecret":
            await rotation.test(token)
        case "finishSecret":
            await rotation.finish(token)
        case _:
            raise OperatorMistake(f"Unknown step {step!r}")
    return step


async def _retire(settings: Settings, secrets: Sequence[str]) -> dict[str, str]:
    """Retire the previous versions whose grace has passed; one failure does not stop the others."""
    outcomes: dict[str, str] = {}
    failed: ScoreboardError | None = None
    for secret in secrets:
        try:
            outcomes[secret] = (await _rotation(settings, secret).retire()).value
        except ScoreboardError as error:
            _log.error("secret_retire_failed", name=secret, reason=error.detail)
            failed = error
    if failed is not None:
        raise failed
    return outcomes


def _rotation(settings: Settings, secret: str) -> Rotation:
    replicas = os.environ.get("REDIS_REPLICAS", "").split()
    return make_rotation(kind_of(secret), secret, settings, replicas=replicas)
