"""Drills: a running system with a hidden fault, to practise the runbook (docs/how-to/drill.md)."""
