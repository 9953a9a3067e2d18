"""Measures notifications on a cluster."""
