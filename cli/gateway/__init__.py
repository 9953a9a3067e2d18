"""Kong's configuration: rendered once, or kept current."""
