"""Request handling around the endpoints: router, rate limit, access log, problems."""
