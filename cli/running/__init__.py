"""What `scoreboard up` runs: plan, start, watch, stop."""
