"""Make the passwords of a new installation, once, each where only its readers mount it.

Runs as the service `secrets` of docker-compose.yml. Later runs change nothing: to have new
passwords, remove the volumes. AWS Secrets Manager (here: moto) is then filled by seed_secrets.py.
"""

import json
import os
import secrets
import sys
from pathlib import Path
from string import Template

PREFIX = "scoreboard/development"
DATABASE = "scoreboard"

# Who logs in to Valkey and to PostgreSQL (users.acl, postgres-roles.sql); `kong` to counters.acl's.
REDIS_USERS = ("api", "streamer", "flusher", "operator")
DATABASE_USERS = ("api", "flusher", "operator")


def write(path: Path, text: str, mode: int) -> None:
    """Write a file anew; its readers run as other users, in containers of their own."""
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def fill_in(template: str, passwords: dict[str, str]) -> str:
    """Make an ACL file: no comments, a line for each user, passwords in place of their names."""
    lines: list[str] = []
    for line in template.splitlines():
        if line.startswith(" "):
            lines[-1] += " " + line.strip()
        elif line and not line.startswith("#"):
            lines.append(line)
    return Template("\n".join(lines) + "\n").substitute(passwords)


def bootstrap(root: Path, templates: Path) -> bool:
    """Write all files below ``root``; tell whether there was anything to do."""
    done = root / "seed" / "secrets.json"
    if done.exists():
        return False
    redis = {name: secrets.token_urlsafe(32) for name in (*REDIS_USERS, "kong")}
    database = {name: secrets.token_urlsafe(32) for name in (*DATABASE_USERS, "owner")}
    for folder, name in (("valkey", "users.acl"), ("counters", "counters.acl")):
        template = (templates / name).read_text()
        write(root / folder / "users.acl", fill_in(template, redis), 0o444)
    for name, password in database.items():
        write(root / "postgres" / name, password, 0o444)
    # libpq ignores a pgpass that others may read; only our own image mounts it.
    write(
        root / "owner" / "pgpass",
        f"*:*:{DATABASE}:scoreboard_owner:{database['owner']}\n",
        0o600,
    )
    write(root / "kong" / "redis-password", redis["kong"], 0o444)
    documents = {
        f"{PREFIX}/redis-{name}": {"username": name, "password": redis[name]}
        for name in REDIS_USERS
    } | {
        f"{PREFIX}/database-{name}": {
            "username": f"scoreboard_{name}_a",
            "password": database[name],
        }
        for name in DATABASE_USERS
    }
    # Last: its existence says that all others are there.
    write(done, json.dumps(documents), 0o400)
    return True


if __name__ == "__main__":
    made = bootstrap(
        Path(os.environ.get("SECRETS_ROOT", "/var/lib/scoreboard/secrets")),
        Path(__file__).parent,
    )
    sys.stderr.write("passwords made\n" if made else "passwords kept\n")
