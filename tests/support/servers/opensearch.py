"""A real OpenSearch node in a folder of its own; its libraries come from Maven, once."""

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cli.embedded.ports import find_free_port
from tests.support.eventually import eventually
from tests.support.repository import CACHE, ROOT

SOURCES = ROOT / "tests/deploy/opensearch"
FETCH_S = 300
START_S = 120


def require_opensearch() -> Path:
    """Return the folder of the libraries; skip the test without Java and Maven, except in CI."""
    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} missing: .ci/run installs maven and a JDK"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    pom = SOURCES / "pom.xml"
    folder = CACHE / f"opensearch-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if not folder.is_dir():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        options = [f"-DoutputDirectory={draft}", "-DincludeScope=runtime"]
        subprocess.run(
            ["mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies", *options],
            check=True,
            timeout=FETCH_S,
        )
        if folder.is_dir():
            shutil.rmtree(draft)
        else:
            draft.rename(folder)
    return folder


@contextmanager
def opensearch(folder: Path) -> Iterator[httpx.Client]:
    """Run a node; yield a client of its HTTP API."""
    libraries = require_opensearch()
    folder.mkdir(parents=True, exist_ok=True)
    port, transport = find_free_port(), find_free_port()
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *("java", "-Xms384m", "-Xmx384m", "-XX:TieredStopAtLevel=1"),
                *("-cp", f"{libraries}/*", str(SOURCES / "Node.java")),
                *(str(folder / "home"), str(port), str(transport)),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

            def is_up() -> bool:
                assert process.poll() is None, log.read_text()[-4000:]
                try:
                    return client.get("/_cluster/health").status_code == 200
                except httpx.TransportError:
                    return False

            eventually(is_up, within_s=START_S, every_s=0.2)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
