"""Merges the modules and the stylesheets of a page into one file each, with a hash in the address.

The files in ``web/`` need no build step: the block between ``<!-- assets -->`` and
``<!-- /assets -->`` of a page names its stylesheets and scripts. Served by the api, the block names
two files instead, ``/live.css?v=HASH`` and ``/live.js?v=HASH``, which browsers keep for good. A
module may only import names from files beside it, and export declarations; anything else raises
ValueError when the api starts.
"""

import gzip
import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from scoreboard.runtime.telemetry import get_logger

BLOCK: Final = re.compile(r"<!-- assets -->.*<!-- /assets -->", re.DOTALL)
_SHEETS: Final = re.compile(r'<link rel="stylesheet" href="([^"]+)">')
_SCRIPTS: Final = re.compile(r'<script( type="module")? src="([^"]+)"></script>')
_IMPORT: Final = re.compile(
    r'^import \{(\s*\w+(?:,\s*\w+)*,?\s*)\} from "\./([\w-]+\.js)";\n', re.MULTILINE
)
_EXPORT: Final = re.compile(
    r"^export (?=(?:async function|function|class|const) (\w+))", re.MULTILINE
)
_OTHER: Final = re.compile(r"^(?:import|export)\b.*|\bimport\.meta\b", re.MULTILINE)
_LATER: Final = re.compile(r'\bimport\("\./')
_CONFIG: Final = '<meta name="scoreboard-config" content="">'

_log = get_logger(__name__)


@dataclass(frozen=True)
class Asset:
    """A merged file."""

    content: bytes
    compressed: bytes
    digest: str
    media_type: str


def _asset(text: str, media_type: str) -> Asset:
    content = text.encode()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Asset(content, gzip.compress(content, mtime=0), digest, media_type)


@dataclass(frozen=True)
class _Version:
    """A page and its merged files, of one moment."""

    html: str
    assets: dict[str, Asset]
    marks: dict[Path, tuple[int, int]]
    """What each file was when it was read."""


class MergedPage:
    """A page of a folder and its merged files, made again after one of their parts changes.

    Threads may share it. While its files cannot be merged, such as during an upgrade, it stays as
    it was.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Read the page.

        Raises OSError if a file is missing, ValueError if one cannot be merged.
        """
        self._folder = folder
        self._name = name
        self._lock = threading.Lock()
        self._is_failing = False
        self._current = self._read()

    @property
    def assets(self) -> dict[str, Asset]:
        """The merged files by path."""
        return self._current.assets

    def refresh(self) -> None:
        """Read the page again if one of its files has changed."""
        with self._lock:
            try:
                marks = self._current.marks
                if any(_mark(path) != mark for path, mark in marks.items()):
                    self._current = self._read()
                self._is_failing = False
            except (OSError, ValueError) as error:
                if not self._is_failing:
                    _log.error("page_not_merged", reason=str(error))
                self._is_failing = True

    def _read(self) -> _Version:
        marks: dict[Path, tuple[int, int]] = {}

        def read(name: str) -> str:
            path = self._folder / name
            marks[path] = _mark(path)  # before it is read: a change from now on is noticed
            return path.read_text(encoding="utf-8")

        html = read(self._name)
        (block,) = BLOCK.findall(html)
        style = "\n".join(read(name) for name in _SHEETS.findall(block))
        scripts = _SCRIPTS.findall(block)
        early = "\n".join(read(name) for is_module, name in scripts if not is_module)
        modules: dict[str, str] = {}
        for is_module, name in scripts:
            if is_module:
                _add_module(name, read, modules)
        body = f"{_START}\nfunction main() {{\n{''.join(modules.values())}}}\n"
        script = f"{early}\n(() => {{\n{body}}})();\n"
        assets = {
            "/live.css": _asset(style, "text/css"),
            "/live.js": _asset(script, "text/javascript"),
        }
        # The script runs before the first paint, to set the theme; the scanner of the browser
        # requests both files before it runs.
        sheet, code = (f"{path}?v={asset.digest}" for path, asset in assets.items())
        lines = f'<script src="{code}"></script>\n  <link rel="stylesheet" href="{sheet}">'
        return _Version(html.replace(block, lines), assets, marks)

    def html(self, config: bytes) -> bytes:
        """Return the page with its configuration, a JSON object."""
        filled = _CONFIG.replace('""', f'"{escape(config.decode())}"')
        return self._current.html.replace(_CONFIG, filled).encode()


_START: Final = (
    '"use strict";\n'
    'if (document.readyState !== "loading") main();\n'
    'else document.addEventListener("DOMContentLoaded", main);'
)


def _mark(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size


def _add_module(name: str, read: Callable[[str], str], modules: dict[str, str]) -> None:
    """Add a module to ``modules`` as a function that returns its exports, after its imports."""
    if name in modules:
        return
    text = read(name)
    modules[name] = ""  # an import of a module that is being added would get nothing
    heads: list[str] = []
    for names, source in _IMPORT.findall(text):
        if modules.get(source) == "":
            raise ValueError(f"{name} and {source} import each other")
        _add_module(source, read, modules)
        heads.append(f"const {{{' '.join(names.split())}}} = {_variable(source)};\n")
    exports = _EXPORT.findall(text)
    body = _LATER.sub('import("/', _EXPORT.sub("", _IMPORT.sub("", text)))
    other = _OTHER.search(body)
    if other:
        raise ValueError(f"{name}: cannot merge {other.group()!r}")
    del modules[name]  # a dictionary keeps the order: behind its imports
    modules[name] = (
        f"const {_variable(name)} = (() => {{\n{''.join(heads)}{body}"
        f"return {{ {', '.join(exports)} }};\n}})();\n"
    )


def _variable(name: str) -> str:
    return "module_" + re.sub(r"\W", "_", name.removesuffix(".js"))
