"""Copy the logins of bootstrap.py to moto, which imitates AWS Secrets Manager.

Runs as the service `seed` of docker-compose.yml (profile `moto`). A file SERVICE/KIND becomes the
secret PREFIX + SERVICE/KIND. moto loses its data at a restart, so the program keeps running and
creates what is missing; it changes no secret that exists. With ``--check``, the health check, it
exits with 1 if any is missing.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

INTERVAL_S = 2
LIMITS = Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 1})
SERVICES = ("api", "streamer", "flusher", "operator", "rotator", "kong")


def find(root: Path, prefix: str) -> dict[str, str]:
    """Return the documents by the names of their secrets; versions of a rotation do not count."""
    return {
        f"{prefix}{service}/{path.name}": path.read_text()
        for service in SERVICES
        for path in sorted((root / service).iterdir())
        if "." not in path.name
    }


def seed(client: Any, documents: dict[str, str]) -> list[str]:  # noqa: ANN401 (boto3 has no types)
    """Create each missing secret; return the names of those created."""
    created = []
    for name, text in documents.items():
        try:
            client.create_secret(Name=name, SecretString=text)
        except client.exceptions.ResourceExistsException:
            continue
        created.append(name)
    return created


def missing(client: Any, documents: dict[str, str]) -> list[str]:  # noqa: ANN401
    """Return the names of the secrets that do not exist."""
    found = []
    for name in documents:
        try:
            client.describe_secret(SecretId=name)
        except client.exceptions.ResourceNotFoundException:
            found.append(name)
    return found


def main(*, check: bool) -> int:
    """Seed until the process is stopped; with ``check``, only look once."""
    client = boto3.client("secretsmanager", config=LIMITS)
    root = Path(os.environ.get("SECRETS_ROOT", "/var/lib/scoreboard/secrets"))
    prefix = os.environ["SECRETS_PREFIX"]
    if check:
        try:
            return 1 if missing(client, find(root, prefix)) else 0
        except BotoCoreError:
            return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        documents = find(root, prefix)
        try:
            created = seed(client, documents)
        except (BotoCoreError, ClientError) as error:
            sys.stderr.write(f"moto does not answer: {type(error).__name__}\n")
        else:
            if created:
                sys.stderr.write(f"{len(created)} of {len(documents)} secrets created\n")
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
