"""The definitions of custom resources, from the modules of the projects that define them."""

import json
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.tools import obtain


class Source(NamedTuple):
    """Files in a Go module, which the checksum identifies."""

    module: str
    checksum: str
    folder: str
    names: tuple[str, ...]


SOURCES: Final = (
    Source(
        "github.com/kedacore/keda/v2@v2.18.1",
        "h1:h6bRt/IOxxtZpJlHSqhdH/lcInH7Z9obxg/JvWOmGAw=",
        "config/crd/bases",
        ("keda.sh_scaledobjects.yaml", "keda.sh_triggerauthentications.yaml"),
    ),
    Source(
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        "example/prometheus-operator-crd",
        (
            "monitoring.coreos.com_podmonitors.yaml",
            "monitoring.coreos.com_prometheusrules.yaml",
            "monitoring.coreos.com_servicemonitors.yaml",
        ),
    ),
)


def files() -> list[Path]:
    """Return the files of all definitions."""
    found = []
    for source in SOURCES:
        output = obtain(source.module, ["go", "mod", "download", "-json", source.module])
        # Go writes what it does before the document.
        downloaded = json.loads(output[output.index("{") :])
        assert downloaded["Sum"] == source.checksum, source.module
        folder = Path(downloaded["Dir"]) / source.folder
        found += [folder / name for name in source.names]
    return found
