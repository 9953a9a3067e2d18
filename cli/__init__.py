"""The `scoreboard` command: run, operate, repair and measure a scoreboard."""
