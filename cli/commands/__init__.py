"""One module per noun, as `scoreboard --help` lists them."""
