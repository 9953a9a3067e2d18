"""The development issuer: an OAuth 2.0 server for local use."""
