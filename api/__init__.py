"""HTTP: authentication, validation, error shapes; one script call per request."""
