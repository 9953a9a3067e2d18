"""A system with the deployed users and roles whose services take their logins from secrets."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg import sql

from scoreboard.ledger import migrations
from tests.support.servers.rights import make_roles, make_users
from tests.support.servers.system import System

USERS = {
    "api": "scoreboard_api",
    "flusher": "scoreboard_flusher",
    "streamer": "scoreboard_streamer",
    "operator": "scoreboard_operator",
}
"""Users of Redis by service, and the role of PostgreSQL whose two logins the service has."""

ROTATOR = "rotator"

AWS_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"),
    *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ENDPOINT_URL_SECRETS_MANAGER"),
)


class Rotated:
    """The system; secrets are files, or those of ``aws``, a client of Secrets Manager."""

    def __init__(
        self,
        folder: Path,
        *,
        aws: Any = None,
        password: str = "first",
        variables: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.folder = folder
        self._aws = aws
        prefix = "scoreboard/test/" if aws else f"{folder}/"
        self.secrets = {
            (name, kind): f"{prefix}{name}/{kind}"
            for name in (*USERS, ROTATOR)
            for kind in ("redis", "database")
        }
        self.aws_variables = {
            name: os.environ[name] for name in AWS_VARIABLES if aws and name in os.environ
        }
        self.system = System(
            folder / "system",
            environments={
                name: {**self.secret_variables(name), **(variables or {})} for name in USERS
            },
            **settings,
        )
        self.system.valkey.start()
        self.system.postgres.start()
        self.redis = redis.Redis.from_url(self.system.valkey.url, decode_responses=True)
        self.database = psycopg.connect(self.system.postgres.url, autocommit=True)
        make_users(self.redis, password)
        make_roles(self.system.postgres.url, password)
        migrations.migrate(self.system.postgres.url)
        self.rotate(password, "a")
        self.write(self.secrets[ROTATOR, "redis"], document(ROTATOR, password))
        self.write(self.secrets[ROTATOR, "database"], document("scoreboard_rotator_a", password))

    def secret_variables(self, name: str) -> dict[str, str]:
        """Return the variables with which a service or an operator reads its secrets."""
        return {
            **self.aws_variables,
            "SCOREBOARD_SECRETS": "aws" if self._aws else "file",
            "SCOREBOARD_REDIS_SECRET": self.secrets[name, "redis"],
            "SCOREBOARD_DATABASE_SECRET": self.secrets[name, "database"],
        }

    def rotate(self, password: str, login: str) -> None:
        """Set the password of users and logins, and write the secrets."""
        for name, role in USERS.items():
            self.redis.execute_command("ACL", "SETUSER", name, f">{password}")
            if role is not None:
                self.set_password(f"{role}_{login}", password)
        self.write_secrets(password, login)

    def set_password(self, login: str, password: str) -> None:
        """Set the password of a login of PostgreSQL."""
        self.database.execute(
            sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(login), sql.Literal(password)
            )
        )

    def write_secrets(self, password: str, login: str) -> None:
        """Write the secrets of all services."""
        for name, role in USERS.items():
            self.write(self.secrets[name, "redis"], document(name, password))
            if role is not None:
                self.write(self.secrets[name, "database"], document(f"{role}_{login}", password))

    def write(self, secret: str, text: str) -> None:
        """Write one secret."""
        if self._aws is None:
            new = Path(f"{secret}.new")
            new.parent.mkdir(exist_ok=True)
            new.write_text(text)
            new.rename(secret)
            return
        try:
            self._aws.put_secret_value(SecretId=secret, SecretString=text)
        except self._aws.exceptions.ResourceNotFoundException:
            self._aws.create_secret(Name=secret, SecretString=text)

    def replace_and_kill(
        self, password: str, login: str, old_login: str, *, secrets_first: bool
    ) -> None:
        """Remove the old passwords and end all sessions of the services, with no time between.

        The secrets are written before or after it.
        """
        if secrets_first:
            self.write_secrets(password, login)
        for name, role in USERS.items():
            self.redis.execute_command("ACL", "SETUSER", name, "resetpass", f">{password}")
            self.redis.execute_command("CLIENT", "KILL", "USER", name)
            if role is not None:
                self.set_password(f"{role}_{login}", password)
                old = f"{role}_{old_login}"
                self.database.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD NULL").format(sql.Identifier(old))
                )
                self.database.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
                    (old,),
                )
        if not secrets_first:
            self.write_secrets(password, login)

    def redis_connections(self, *names: str) -> dict[str, str]:
        """Return the connections of the services by id, with their names; of ``names`` only."""
        return {
            client["id"]: client["name"]
            for client in self.redis.client_list()
            if client["user"] in USERS and (not names or client["name"] in names)
        }

    def database_sessions(self) -> dict[str, set[str]]:
        """Return the logins of the sessions by application."""
        found: dict[str, set[str]] = {}
        for name, login in self.database.execute(
            "SELECT application_name, usename FROM pg_stat_activity WHERE usename = ANY(%s)",
            ([f"{role}_{login}" for role in USERS.values() if role for login in "ab"],),
        ):
            found.setdefault(name, set()).add(login)
        return found

    def start(self) -> None:
        """Start the services."""
        self.system.start()

    def close(self) -> None:
        """Stop everything."""
        self.system.stop()
        self.redis.close()
        self.database.close()


def document(username: str, password: str) -> str:
    """Return the document of a secret."""
    return json.dumps({"username": username, "password": password})
