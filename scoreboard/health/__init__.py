"""The checks of the whole system, for readiness probes, `scoreboard status` and logs."""
