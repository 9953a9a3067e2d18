"""Prints what a test has measured; `pytest -s` or `-rP` shows it."""

import sys


def show_figures(text: str) -> None:
    """Print one line."""
    sys.stdout.write(f"{text}\n")
