"""Send requests, calls and viewers at a schedule, and count and time their outcomes."""
