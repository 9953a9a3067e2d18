"""The HTTP API: authentication, validation, problems; one script call per request."""
