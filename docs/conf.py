"""Sphinx configuration of the documentation: `make docs`."""

project = "Scoreboard"
author = "The Scoreboard authors"
html_title = "Scoreboard"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["decisions/README.md"]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_copy_source = False
html_show_sourcelink = False
html_extra_path = ["openapi.json", "asyncapi.yaml"]

# Pygments has no lexer for JSON with comments or an ellipsis; such blocks are shown plain.
suppress_warnings = ["misc.highlighting_failure"]
