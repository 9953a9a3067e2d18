"""The `scoreboard` command: run everything, look, repair, measure."""
