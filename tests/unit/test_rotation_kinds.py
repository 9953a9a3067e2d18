"""Which secrets may be rotated as which kind, and at which nodes."""

import pytest

from scoreboard.errors import OperatorMistake
from scoreboard.rotation.kinds import Kind, make_rotation
from scoreboard.runtime.settings import Secret, Settings

FILES = Settings(redis_url=Secret("redis://localhost"), secrets="file")
AWS = Settings(redis_url=Secret("redis://localhost"), secrets="aws")


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        # The main server and that of the counters both have a user named rotator.
        (Kind.REDIS, "prefix/rotator/counters"),
        (Kind.KONG, "prefix/rotator/redis"),
        (Kind.REDIS, "api/database"),
        (Kind.DB, "redis"),
        (Kind.REDIS, "rotator/counters/"),
        (Kind.KONG, "arn:aws:secretsmanager:eu-central-1:1:secret:prefix/api/redis-AbCdEf"),
    ],
)
def test_a_secret_of_another_kind_is_refused(kind: Kind, secret: str) -> None:
    with pytest.raises(OperatorMistake, match=f"{secret} is a secret of the kind"):
        make_rotation(kind, secret, AWS)


@pytest.mark.parametrize("secret", ["prefix/api/redis", "api-login", "redis", "./api/redis"])
def test_a_secret_of_the_kind_or_with_a_name_of_its_own_is_accepted(secret: str) -> None:
    assert make_rotation(Kind.REDIS, secret, FILES).name


@pytest.mark.parametrize(
    "url",
    [
        "",
        "valkey-2:6379",
        "redis://user:planted@host:notaport",
        "redis://user:plan/ted@host:6379",
        "redis://user:planted@host?password=planted",
    ],
)
def test_an_invalid_address_of_another_node_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(OperatorMistake, match="another node") as caught:
        make_rotation(Kind.REDIS, "api/redis", FILES, replicas=[url])

    assert "plan" not in str(caught.value)
