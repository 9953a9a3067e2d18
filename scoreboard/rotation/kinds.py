"""The kinds of secrets: which secrets belong to a kind, and the server of each.

Secrets are named PREFIX + SERVICE/NAME, in AWS Secrets Manager and as files alike. The rotator's
own secret is one of them, so its name is enough to find the others.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from scoreboard.errors import OperatorMistake
from scoreboard.rotation.acl_users import RedisUser
from scoreboard.rotation.database_logins import PostgresLogin
from scoreboard.rotation.steps import Rotation, Target
from scoreboard.rotation.versions import AwsVersions, FileVersions, Versions
from scoreboard.runtime.settings import Settings, variable_name
from scoreboard.security.secret_backends import make_backend


class Kind(StrEnum):
    """The kinds as the command names them."""

    DB = "db"
    REDIS = "redis"
    KONG = "kong"


SECRETS: Final[Mapping[Kind, Sequence[str]]] = {
    Kind.DB: (
        "api/database",
        "streamer/database",
        "flusher/database",
        "operator/database",
        "rotator/database",
    ),
    Kind.REDIS: ("api/redis", "streamer/redis", "flusher/redis", "operator/redis", "rotator/redis"),
    Kind.KONG: ("kong/counters", "rotator/counters"),
}
"""The rotator's own secret is last: the others are changed with its current login."""

_KINDS: Final = {"database": Kind.DB, "redis": Kind.REDIS, "counters": Kind.KONG}
_ARN_SUFFIX: Final = re.compile(r"-[A-Za-z0-9]{6}")
GRACE_TIMES: Final = 2.2
"""Grace in refresh times: one until each process has read the new version, ± 10 %, and one more."""

READ_S: Final = 5.0
"""Longest time of a read, which is added to it."""


def default_secrets(kind: Kind, settings: Settings) -> list[str]:
    """Return the secrets of a kind, beside the rotator's own.

    Raises OperatorMistake if the settings do not name the rotator's secret.
    """
    field = "database_secret" if kind is Kind.DB else "redis_secret"
    own, tail = getattr(settings, field), SECRETS[kind][-1]
    if not own.endswith(tail):
        raise OperatorMistake(
            f"Name the secrets to rotate, or set {variable_name(field)} to the rotator's own "
            f"secret (…/{tail})"
        )
    prefix = own.removesuffix(tail)
    return [f"{prefix}{name}" for name in SECRETS[kind]]


def kind_of(secret: str) -> Kind:
    """Return the kind of a secret from its name or ARN.

    Raises OperatorMistake for a name of another form.
    """
    kind = _find_kind(secret)
    if kind is None:
        raise OperatorMistake(
            f"{secret} is not named SERVICE/{', SERVICE/'.join(_KINDS)}, so its kind is unknown"
        )
    return kind


def make_rotation(
    kind: Kind,
    secret: str,
    settings: Settings,
    *,
    grace_s: float | None = None,
    replicas: Sequence[str] = (),
) -> Rotation:
    """Return the rotation of a secret; ``settings`` are those of the rotator.

    ``replicas`` are further nodes of Redis. Raises OperatorMistake where the settings do not name a
    store of secrets, and for a secret that is named as one of another kind.
    """
    # Both servers of Redis have a user "rotator": the wrong one would accept the new password, and
    # would refuse the rotator's own after the retirement.
    named = _find_kind(secret) or kind
    if named is not kind:
        raise OperatorMistake(f"{secret} is a secret of the kind {named}, not {kind}")
    target: Target = PostgresLogin(settings) if kind is Kind.DB else RedisUser(settings, replicas)
    if grace_s is None:
        refresh_s = make_backend(settings.secrets, secret, settings.secrets_refresh_s).ttl_s
        grace_s = GRACE_TIMES * refresh_s + READ_S
    return Rotation(make_versions(secret, settings), target, grace_s=grace_s)


def make_versions(secret: str, settings: Settings) -> Versions:
    """Return the versions of a secret in the store that the settings name.

    Raises OperatorMistake for SCOREBOARD_SECRETS=env.
    """
    if settings.secrets == "aws":
        return AwsVersions(secret)
    if settings.secrets == "file":
        return FileVersions(Path(secret))
    raise OperatorMistake(
        "Secrets in environment variables cannot be rotated; set SCOREBOARD_SECRETS to aws or file"
    )


def _find_kind(secret: str) -> Kind | None:
    last = secret.rstrip("/").rpartition("/")[2]
    if secret.startswith("arn:"):
        last = _ARN_SUFFIX.sub("", last)
    return _KINDS.get(last)
