"""The endpoints, one module per group, and their helpers."""
