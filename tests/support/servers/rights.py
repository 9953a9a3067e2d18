"""Create the deployed users of Valkey and roles of PostgreSQL on test servers.

Both come from the files that a deployment uses: deploy/docker/users.acl, postgres-roles.sql and
sql/grants.sql (by `migrate`).
"""

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import redis

from cli.embedded import binaries
from cli.embedded.postgres_cluster import server_environment

DOCKER = Path(__file__).parents[3] / "deploy" / "docker"
REDIS_USERS = ("api", "streamer", "flusher", "operator", "rotator")
DATABASE_USERS = ("api", "streamer", "flusher", "operator", "rotator")


def load_script(path: Path) -> Any:
    """Import a script that is not in a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_users(admin: redis.Redis, password: str, file: str = "users.acl") -> None:
    """Create the deployed users of a file on a server; the default user does not change."""
    for line in acl_lines(password, file):
        _, name, *rules = _words(line)
        admin.execute_command("ACL", "SETUSER", name, "reset", *rules)


def acl_lines(password: str, file: str = "users.acl", *, docker: Path = DOCKER) -> list[str]:
    """Return the lines of an ACL file for the deployed users, without the default user."""
    bootstrap = load_script(docker / "bootstrap.py")
    template = (docker / file).read_text()
    others = ("kong", "monitor", "replica", "cluster")
    rules = dict.fromkeys((*REDIS_USERS, *others), bootstrap.hash_of(password))
    lines = bootstrap.fill_in(template, rules).splitlines()
    return [line for line in lines if line.split()[1] != "default"]


def make_roles(owner_url: str, password: str, *, docker: Path = DOCKER) -> None:
    """Create the deployed roles, as the owner of a database does before migrating it."""
    subprocess.run(
        [
            binaries.find_postgres().path("psql"),
            *("-q", "-v", "ON_ERROR_STOP=1", "-f", str(docker / "postgres-roles.sql"), owner_url),
        ],
        env=server_environment()
        | {
            f"{name.upper()}_DATABASE": json.dumps(
                {"username": f"scoreboard_{name}_a", "password": password}
            )
            for name in DATABASE_USERS
        },
        check=True,
        timeout=30,
        capture_output=True,
    )


def as_user(url: str, name: str, password: str) -> str:
    """Return a URL with another login."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{name}:{quote(password, safe='')}@{address}"))


def _words(line: str) -> list[str]:
    """Split a line of an ACL file; a selector in parentheses is one word."""
    words: list[str] = []
    depth = 0
    for word in line.split(" "):
        if depth:
            words[-1] += " " + word
        else:
            words.append(word)
        depth += word.count("(") - word.count(")")
    return words
