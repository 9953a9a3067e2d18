"""The overlays as an installation uses them: filled in, with the passwords of dev created."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.repository import ROOT

DEV: Final = "dev"
KEDA: Final = "prod"
HPA: Final = "prod-without-keda"
NAMES: Final = (DEV, KEDA, HPA)
PLACEHOLDER: Final = "CHANGE-ME"
SETTINGS: Final = {
    "REDIS_URL": "rediss://redis.internal.example:6379/0",
    "DATABASE_URL": "postgresql://database.internal.example:5432/scoreboard?sslmode=require",
    "COUNTERS_URL": "rediss://kong@counters.internal.example:6379/0",
    "REDIS_NETWORK": "10.20.1.0/24",
    "DATABASE_NETWORK": "10.20.2.0/24",
    "COUNTERS_NETWORK": "10.20.3.0/24",
    "ACCOUNT": "123456789012",
    "AWS_REGION": "eu-central-1",
    "OWNER_SECRET": "rds!cluster-owner",
    "SCOREBOARD_ISSUER": "https://login.example/",
    "SCOREBOARD_JWKS_URL": "https://login.example/keys",
    "SCOREBOARD_ORIGINS": "https://game.example",
    "SCOREBOARD_TRUSTED_HOPS": "10.244.0.0/16",
    "CERTIFICATE": "arn:aws:acm:eu-central-1:123456789012:certificate/0000",
}
"""What an installation fills in, by the name of the setting."""
DIGEST: Final = f"sha256:{'0' * 64}"
REGISTRY: Final = "registry.example"


def copy_manifests(folder: Path) -> Path:
    """Copy deploy/ and fill the overlays in; return the folder of the overlays."""
    shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("secrets"))
    overlays = folder / "deploy/k8s/overlays"
    _create_passwords(overlays / DEV)
    _fill_in(overlays / KEDA)
    shutil.copytree(overlays / KEDA, overlays / HPA)
    _use_other_components(overlays / HPA / "kustomization.yaml")
    return overlays


def _create_passwords(overlay: Path) -> None:
    """Create the passwords of dev by the program that its comment names."""
    secrets = overlay / "secrets"
    secrets.mkdir()
    subprocess.run(
        [sys.executable, str(ROOT / "deploy/docker/bootstrap.py")],
        env={**os.environ, "SECRETS_ROOT": str(secrets)},
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )


def _fill_in(overlay: Path) -> None:
    """Replace every placeholder; an unknown one fails."""
    settings = overlay / "settings.env"
    lines = []
    for line in settings.read_text().splitlines():
        name = line.partition("=")[0]
        unfilled = PLACEHOLDER in line and not line.startswith("#")
        lines.append(f"{name}={SETTINGS[name]}" if unfilled else line)
    settings.write_text("\n".join(lines) + "\n")
    for file in overlay.glob("*.yaml"):
        text = file.read_text().replace(f"sha256:{PLACEHOLDER}", DIGEST)
        file.write_text(text.replace(PLACEHOLDER, REGISTRY))


def _use_other_components(kustomization: Path) -> None:
    """Choose the components that the overlay has in comments, instead of KEDA."""
    text = kustomization.read_text()
    assert "../../components/hpa" in text
    assert "../../components/rotation" in text
    lines = [
        re.sub(r"^# .*: (\.\./\.\./components/\w+)$", r"- \1", line)
        for line in text.splitlines()
        if line.strip() != "- ../../components/keda"
    ]
    kustomization.write_text("\n".join(lines) + "\n")
