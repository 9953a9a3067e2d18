"""Around every request: middleware, authentication, rate limit, problems."""
