"""Sphinx configuration of the documentation: `make docs`."""

from pathlib import Path

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

project = "Scoreboard"
author = "The Scoreboard authors"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["decisions/README.md"]

myst_heading_anchors = 4

html_theme = "furo"
html_title = "Scoreboard"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_extra_path = ["openapi.json", "asyncapi.yaml"]

# Expected outputs contain `…`, which is not valid JSON; such blocks are shown plain.
suppress_warnings = ["misc.highlighting_failure"]

SKIPS_NUMBERS = r"|| queryTerm.match(/^\d+$/)"


class Search(SearchEnglish):
    """English, with numbers: readers search for close codes, statuses and exit codes."""

    def word_filter(self, word: str) -> bool:
        """Return whether a word belongs in the index."""
        return word not in self.stopwords


def accept_numbers(app: Sphinx, _: Exception | None) -> None:
    """Let the search program accept numbers, which it skips by default."""
    program = Path(app.outdir) / "_static/searchtools.js"
    if app.builder.name == "html" and SKIPS_NUMBERS in (text := program.read_text()):
        program.write_text(text.replace(SKIPS_NUMBERS, ""))


def setup(app: Sphinx) -> None:
    """Connect the search."""
    app.add_search_language(Search)
    app.connect("build-finished", accept_numbers)
