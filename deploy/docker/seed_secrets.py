"""Write the passwords of bootstrap.py to moto, which imitates AWS Secrets Manager.

Runs as the service `seed` of docker-compose.yml. moto loses its data at a restart; then run it
again (`docker compose up -d seed`). Running services continue with the values they have read.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import boto3


def seed(client: Any, documents: dict[str, dict[str, str]]) -> list[str]:  # noqa: ANN401 (boto3 has no types)
    """Create each secret, or a new version if its value differs; return the changed names."""
    changed = []
    for name, document in sorted(documents.items()):
        text = json.dumps(document)
        try:
            client.create_secret(Name=name, SecretString=text)
        except client.exceptions.ResourceExistsException:
            if client.get_secret_value(SecretId=name)["SecretString"] == text:
                continue
            client.put_secret_value(SecretId=name, SecretString=text)
        changed.append(name)
    return changed


if __name__ == "__main__":
    root = Path(os.environ.get("SECRETS_ROOT", "/var/lib/scoreboard/secrets"))
    found = json.loads((root / "seed" / "secrets.json").read_text())
    names = seed(boto3.client("secretsmanager"), found)
    sys.stderr.write(f"{len(names)} of {len(found)} secrets written\n")
