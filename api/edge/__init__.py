"""Request handling around the endpoints: router, authentication, rate limit, problems."""
