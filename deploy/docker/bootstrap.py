"""Create the passwords of a new installation once, each in the volume of its readers.

Runs as the service `secrets` of docker-compose.yml. Later runs change nothing; to create new
passwords, remove the volumes. seed_secrets.py writes them to AWS Secrets Manager (here: moto).
"""

import json
import os
import secrets
import sys
from pathlib import Path
from string import Template

PREFIX = "scoreboard/development"
DATABASE = "scoreboard"

# The users of Valkey and PostgreSQL (users.acl, postgres-roles.sql); `kong` is in counters.acl.
REDIS_USERS = ("api", "streamer", "flusher", "operator")
DATABASE_USERS = ("api", "flusher", "operator")


def write(path: Path, text: str, mode: int) -> None:
    """Replace a file; its readers run as other users in other containers."""
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def fill_in(template: str, passwords: dict[str, str]) -> str:
    """Render an ACL file: without comments, one line per user, with passwords."""
    lines: list[str] = []
    for line in template.splitlines():
        if line.startswith(" "):
            lines[-1] += " " + line.strip()
        elif line and not line.startswith("#"):
            lines.append(line)
    return Template("\n".join(lines) + "\n").substitute(passwords)


def bootstrap(root: Path, templates: Path) -> bool:
    """Write all files below ``root``; return False if they exist."""
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
    # libpq ignores a pgpass that other users can read; only the scoreboard image mounts it.
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
    # Written last, so that its existence means that all files exist.
    write(done, json.dumps(documents), 0o400)
    return True


if __name__ == "__main__":
    made = bootstrap(
        Path(os.environ.get("SECRETS_ROOT", "/var/lib/scoreboard/secrets")),
        Path(__file__).parent,
    )
    sys.stderr.write("passwords created\n" if made else "passwords exist\n")
