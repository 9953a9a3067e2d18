"""Measures many boards."""
