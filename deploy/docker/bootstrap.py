"""Create the logins of a new installation, each in the folder of the service that uses it.

Runs as the service `secrets` of docker-compose.yml, which keeps each folder in a volume. Every file
that exists is kept, so it can be repeated, also after it was killed or after an upgrade. It writes

- SERVICE/redis, SERVICE/database, SERVICE/counters: a login, {"username": …, "password": …};
- valkey/users.acl, counters/users.acl: the ACL files of both Valkeys, with hashes of the passwords;
- valkey/replication.conf: the login of replicas at their primary, as lines of valkey.conf;
- postgres/owner, owner/pgpass, owner/database: the password of the database's owner;
- monitor/redis.json, monitor/database-password: the passwords of the exporters, in their formats.

It takes passwords over from the files of earlier versions. With ``--remove-old`` it removes those.
"""

import hashlib
import json
import os
import secrets
import sys
import tempfile
from pathlib import Path
from string import Template

DATABASE, OWNER = "scoreboard", "scoreboard_owner"

LOGINS = {
    "api": ("redis", "database"),
    "streamer": ("redis", "database"),
    "flusher": ("redis", "database"),
    "operator": ("redis", "database"),
    "rotator": ("redis", "database", "counters"),
    "monitor": ("redis",),
    "replica": ("redis",),
    "cluster": ("redis",),
    "kong": ("counters",),
}
"""The secrets of each service; the users are in users.acl, counters.acl, postgres-roles.sql."""

NODES = ("valkey", *(f"valkey-{number}" for number in range(2, 7)))
"""The one server, and the other nodes if it is one of a cluster (deploy/docker/cluster.yml)."""

REDIS_ADDRESSES = tuple(f"redis://{user}{node}:6379" for node in NODES for user in ("", "monitor@"))
"""What redis_exporter looks its password up by: older versions omit the user."""

ACL_FILES = {"valkey": ("users.acl", "redis"), "counters": ("counters.acl", "counters")}
"""Template, and kind of secret, of the ACL file in each folder."""

OLD_FILES = (
    "seed/secrets.json",
    "kong/redis-password",
    *(f"postgres/{service}" for service in ("api", "flusher", "operator")),
)
"""What earlier versions wrote and this one does not use."""


def write(path: Path, text: str, mode: int, group: int = -1) -> None:
    """Replace a file atomically."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fchown(handle, -1, group)
            os.fchmod(handle, mode)
            os.fsync(handle)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def open_folder(path: Path, mode: int, group: int = -1) -> None:
    """Set who may use a folder; a new volume has the mode of the image's folder."""
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, -1, group)
    path.chmod(mode)


def hash_of(password: str) -> str:
    """Return a password as an ACL rule."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def fill_in(template: str, passwords: dict[str, str]) -> str:
    """Render an ACL file: no comments, one line per user; ``passwords`` are rules by user."""
    lines: list[str] = []
    for line in template.splitlines():
        if line.startswith(" "):
            lines[-1] += " " + line.strip()
        elif line and not line.startswith("#"):
            lines.append(line)
    return Template("\n".join(lines) + "\n").substitute(passwords)


def users_in(acl: str) -> dict[str, str]:
    """Return the lines of an ACL file by user."""
    return {line.split()[1]: line for line in acl.splitlines() if line.startswith("user ")}


def passwords_in(line: str) -> list[str]:
    """Return the hashes of a user's passwords."""
    rules = line.split()[2:]
    return [rule if rule[0] == "#" else hash_of(rule[1:]) for rule in rules if rule[0] in "#>"]


def write_acl(folder: Path, template: str, passwords: dict[str, str], group: int) -> bool:
    """Write an ACL file unless it has all users and passwords; return whether it was written.

    The server rewrites the file (ACL SAVE). Therefore passwords that it has are kept, and so are
    users that the template does not have; rights are those of the template.
    """
    path, seen = folder / "users.acl", folder / ".template"
    digest = hashlib.sha256(template.encode()).hexdigest()
    users = users_in(path.read_text()) if path.exists() else {}
    known = {name: passwords_in(line) for name, line in users.items()}
    rules = {name: hash_of(password) for name, password in passwords.items()}
    complete = all(rule in known.get(name, ()) for name, rule in rules.items())
    if complete and seen.exists() and seen.read_text() == digest:
        return False
    merged = {
        name: " ".join(dict.fromkeys([*known.get(name, ()), rule])) for name, rule in rules.items()
    }
    text = fill_in(template, merged)
    added = [line for name, line in users.items() if name not in users_in(text)]
    write(path, text + "".join(f"{line}\n" for line in added), 0o640, group)
    write(seen, digest, 0o600)
    return True


def old_documents(root: Path) -> dict[str, dict[str, str]]:
    """Return the logins that an earlier version has stored, by their names now."""
    found: dict[str, dict[str, str]] = {}
    seeded = root / "seed" / "secrets.json"
    if seeded.exists():
        for name, document in json.loads(seeded.read_text()).items():
            kind, _, service = name.rpartition("/")[2].partition("-")
            found[f"{service}/{kind}"] = document
    kong = root / "kong" / "redis-password"
    if kong.exists():
        found["kong/counters"] = {"username": "kong", "password": kong.read_text()}
    return found


def new_document(service: str, kind: str) -> dict[str, str]:
    """Return a login with a new password."""
    username = f"scoreboard_{service}_a" if kind == "database" else service
    return {"username": username, "password": secrets.token_urlsafe(32)}


def owner_password(root: Path) -> str:
    """Return the owner's password: one that is stored, or a new one."""
    stored, pgpass = root / "postgres" / "owner", root / "owner" / "pgpass"
    if stored.exists():
        return stored.read_text()
    if pgpass.exists():
        return pgpass.read_text().strip().rpartition(":")[2]
    return secrets.token_urlsafe(32)


def write_exporter_files(folder: Path) -> list[str]:
    """Write the passwords of the exporters in their formats; return the names of new files."""
    password = json.loads((folder / "redis").read_text())["password"]
    addresses = json.dumps(dict.fromkeys(REDIS_ADDRESSES, password))
    made = []
    path = folder / "redis.json"
    if not path.exists() or path.read_text() != addresses:
        write(path, addresses, 0o600)
        made.append(f"monitor/{path.name}")
    path = folder / "database-password"
    if not path.exists():
        write(path, secrets.token_urlsafe(32), 0o600)
        made.append(f"monitor/{path.name}")
    return made


def write_replication(root: Path, group: int) -> list[str]:
    """Write the login of replicas for every node; return the name of the file if it is new."""
    path = root / "valkey" / "replication.conf"
    login = json.loads((root / "replica" / "redis").read_text())
    text = f"masteruser {login['username']}\nmasterauth {login['password']}\n"
    if path.exists() and path.read_text() == text:
        return []
    write(path, text, 0o640, group)
    return [f"valkey/{path.name}"]


def bootstrap(root: Path, templates: Path, *, valkey: int = -1, postgres: int = -1) -> list[str]:
    """Write what is missing below ``root``; return the names of what was written.

    ``valkey`` and ``postgres`` are the groups of these servers, which run as other users.
    """
    for service in (*LOGINS, "owner"):
        # Kong's image chooses its user, so others may read this folder, which only Kong mounts.
        open_folder(root / service, 0o755 if service == "kong" else 0o700)
    open_folder(root / "postgres", 0o750, postgres)
    for folder in ACL_FILES:
        # ACL SAVE writes a file beside the old one and renames it.
        open_folder(root / folder, 0o2770, valkey)
    made: list[str] = []

    owner = owner_password(root)
    # libpq ignores a pgpass that other users can read.
    for name, text, mode, group in (
        ("postgres/owner", owner, 0o440, postgres),
        ("owner/pgpass", f"*:*:{DATABASE}:{OWNER}:{owner}\n", 0o600, -1),
        ("owner/database", json.dumps({"username": OWNER, "password": owner}), 0o600, -1),
    ):
        if not (root / name).exists():
            write(root / name, text, mode, group)
            made.append(name)

    old = old_documents(root)
    for service, kinds in LOGINS.items():
        for kind in kinds:
            name = f"{service}/{kind}"
            if not (root / name).exists():
                document = old.get(name) or new_document(service, kind)
                write(root / name, json.dumps(document), 0o444 if service == "kong" else 0o600)
                made.append(name)

    made += write_exporter_files(root / "monitor")
    made += write_replication(root, valkey)
    for folder, (template, kind) in ACL_FILES.items():
        passwords = {
            service: json.loads((root / service / kind).read_text())["password"]
            for service, kinds in LOGINS.items()
            if kind in kinds
        }
        if write_acl(root / folder, (templates / template).read_text(), passwords, valkey):
            made.append(f"{folder}/users.acl")
    return made


def main(arguments: list[str]) -> None:
    """Run as a command; names of files are printed, passwords never."""
    root = Path(os.environ.get("SECRETS_ROOT", "/var/lib/scoreboard/secrets"))
    made = bootstrap(
        root,
        Path(__file__).parent,
        valkey=int(os.environ.get("VALKEY_GROUP", "-1")),
        postgres=int(os.environ.get("POSTGRES_GROUP", "-1")),
    )
    sys.stderr.write(f"written: {', '.join(made)}\n" if made else "nothing to write\n")
    left = [name for name in OLD_FILES if (root / name).exists()]
    if "--remove-old" in arguments:
        for name in left:
            (root / name).unlink()
        sys.stderr.write(f"removed: {', '.join(left)}\n")
    elif left:
        sys.stderr.write(f"of an earlier version, no longer used: {', '.join(left)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
