"""Build the package of the rotation function for AWS Lambda: dist/scoreboard-rotation.zip.

It contains the module `scoreboard` from the wheel and what requirements/lambda.txt pins by hash,
for one Python and one processor. The same commit gives the same bytes. Options: ``--help``.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements" / "lambda.txt"

PLATFORMS = {
    ("3.11", "x86_64"): "x86_64-manylinux2014",  # the runtime python3.11 has glibc 2.26
    **{
        (python, arch): f"{platform}-manylinux_2_28"
        for python in ("3.12", "3.13", "3.14")
        for arch, platform in (("x86_64", "x86_64"), ("arm64", "aarch64"))
    },
}
"""The wheels' platform for each Python and processor of Lambda that can run the package."""

UNZIPPED_BYTES_MAX = 250 * 2**20
"""The limit of Lambda."""

OWN_MODULES = ("scoreboard",)
LEFT_OUT = ("scoreboard/_web/", "scoreboard/_kong/")
BOTOCORE_DATA = "botocore/data/"
BOTOCORE_KEPT = "secretsmanager/"
"""The description of the service that the function calls; the files that botocore reads for each
service are kept too."""

MODIFIED = (1980, 1, 1, 0, 0, 0)


def main() -> None:
    """Build the package and print its path and sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default="3.11", choices=sorted({key[0] for key in PLATFORMS}))
    parser.add_argument("--arch", default="x86_64", choices=sorted({key[1] for key in PLATFORMS}))
    parser.add_argument("--add", type=Path, action="append", default=[], metavar="FILE",
                        help="also include FILE, such as the certificates of a private authority; "
                        "the function finds it in /var/task; can be repeated")  # fmt: skip
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "scoreboard-rotation.zip")
    options = parser.parse_args()
    platform = PLATFORMS.get((options.python, options.arch))
    if platform is None:
        parser.error(f"the dependencies have no wheels for Python {options.python} on "
                     f"{options.arch}: choose a later Python")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="scoreboard-") as folder:
        staged = Path(folder) / "package"
        install(staged, options.python, platform)
        unpack_wheel(Path(folder), staged)
        for added in options.add:
            shutil.copyfile(added, staged / added.name)
        size = write_archive(staged, options.output)
    if size > UNZIPPED_BYTES_MAX:
        sys.exit(f"{options.output} has {size} bytes unzipped; Lambda accepts {UNZIPPED_BYTES_MAX}")
    zipped = options.output.stat().st_size
    print(f"{options.output}: {zipped / 1e6:.1f} MB, {size / 1e6:.1f} MB unzipped")  # noqa: T201


def install(folder: Path, python: str, platform: str) -> None:
    """Install the pinned wheels for a platform; each must have one of its hashes."""
    subprocess.run(  # noqa: S603 (fixed arguments)
        [
            *(Path(sys.executable).with_name("uv"), "pip", "install", "--quiet"),
            *("--target", folder, "--python-version", python, "--python-platform", platform),
            *("--only-binary", ":all:", "--no-deps", "--require-hashes", "--link-mode", "copy"),
            *("-r", REQUIREMENTS),
        ],
        check=True,
    )


def unpack_wheel(work: Path, folder: Path) -> None:
    """Build the wheel and unpack the module that the function imports."""
    subprocess.run(  # noqa: S603 (fixed arguments)
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work],
        cwd=ROOT,
        env=os.environ | {"SOURCE_DATE_EPOCH": "315532800"},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.split("/")[0] in OWN_MODULES and not name.startswith(LEFT_OUT):
                archive.extract(name, folder)


def is_kept(name: str) -> bool:
    """Return whether the function needs a file."""
    if "/__pycache__/" in name or name.startswith(("bin/", ".lock")):
        return False
    if ".dist-info/" in name:  # RECORD and direct_url.json name paths of this machine
        return name.endswith("/METADATA")
    data = name.removeprefix(BOTOCORE_DATA)
    return data == name or "/" not in data or data.startswith(BOTOCORE_KEPT)


def write_archive(folder: Path, path: Path) -> int:
    """Write the archive, sorted and with a fixed date; return the size of its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    size = 0
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and is_kept(name):
                entry = zipfile.ZipInfo(name, MODIFIED)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16  # Lambda runs as another user
                content = file.read_bytes()
                size += len(content)
                archive.writestr(entry, content)
    draft.replace(path)
    return size


if __name__ == "__main__":
    main()
