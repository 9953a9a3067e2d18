"""Clients of the system."""
