"""Copy the logins of bootstrap.py to moto, which imitates AWS Secrets Manager.

Runs as the service `seed` of docker-compose.yml (profile `moto`). moto loses its data at a restart;
then run it again. A file SERVICE/KIND becomes the secret PREFIX + SERVICE/KIND.
"""

import os
import sys
from pathlib import Path
from typing import Any

import boto3

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
    """Create each secret, or a new version if its value differs; return the changed names."""
    changed = []
    for name, text in documents.items():
        try:
            client.create_secret(Name=name, SecretString=text)
        except client.exceptions.ResourceExistsException:
            current = client.get_secret_value(SecretId=name, VersionStage="AWSCURRENT")
            if current["SecretString"] == text:
                continue
            client.put_secret_value(SecretId=name, SecretString=text)
        changed.append(name)
    return changed


if __name__ == "__main__":
    found = find(
        Path(os.environ.get("SECRETS_ROOT", "/var/lib/scoreboard/secrets")),
        os.environ["SECRETS_PREFIX"],
    )
    names = seed(boto3.client("secretsmanager"), found)
    sys.stderr.write(f"{len(names)} of {len(found)} secrets written\n")
