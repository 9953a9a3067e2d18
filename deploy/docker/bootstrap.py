"""Make the passwords of a new installation, once, each where only its readers mount it.

Runs as the service `secrets` of docker-compose.yml. Later runs change nothing: to have new
passwords, remove the volumes. AWS Secrets Manager (here: moto) is then filled by seed_secrets.py.
"""

import json
import os
import secrets
import sys
from pathlib import Path

PREFIX = "scoreboard/development"
DATABASE = "scoreboard"

# What a service may do on the board's keys; CONFIG GET and INFO let it check durability.
SERVICE_RULES = "~sb:* resetchannels &sb:* +@all -@dangerous -@admin +config|get +info"
# Kong counts in a server of its own, and can do nothing else there.
GATEWAY_RULES = "~ratelimit:* resetchannels +eval +incr +expire +select +ping"
HEALTH = "user health on nopass resetkeys resetchannels +ping\n"


def write(path: Path, text: str, mode: int) -> None:
    """Write a file anew; its readers run as other users, in containers of their own."""
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def bootstrap(root: Path) -> bool:
    """Write all files below ``root``; tell whether there was anything to do."""
    done = root / "seed" / "secrets.json"
    if done.exists():
        return False
    owner, service, redis, gateway = (secrets.token_urlsafe(32) for _ in range(4))
    write(
        root / "valkey" / "users.acl",
        f"user default off\nuser scoreboard on >{redis} {SERVICE_RULES}\n{HEALTH}",
        0o444,
    )
    write(
        root / "counters" / "users.acl",
        f"user default off\nuser kong on >{gateway} {GATEWAY_RULES}\n{HEALTH}",
        0o444,
    )
    write(root / "postgres" / "owner", owner, 0o444)
    write(root / "postgres" / "scoreboard_a", service, 0o444)
    # libpq ignores a pgpass that others may read; only our own image mounts it.
    write(root / "owner" / "pgpass", f"*:*:{DATABASE}:scoreboard_owner:{owner}\n", 0o600)
    write(root / "kong" / "redis-password", gateway, 0o444)
    # Last: its existence says that all others are there.
    write(
        done,
        json.dumps(
            {
                f"{PREFIX}/redis": {"username": "scoreboard", "password": redis},
                f"{PREFIX}/database": {"username": "scoreboard_a", "password": service},
                f"{PREFIX}/database-owner": {"username": "scoreboard_owner", "password": owner},
            }
        ),
        0o400,
    )
    return True


if __name__ == "__main__":
    made = bootstrap(Path(os.environ.get("SECRETS_ROOT", "/var/lib/scoreboard/secrets")))
    sys.stderr.write("passwords made\n" if made else "passwords kept\n")
