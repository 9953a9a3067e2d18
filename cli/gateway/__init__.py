"""Kong's configuration: rendered once, or kept up to date."""
