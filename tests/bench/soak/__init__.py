"""The highest steady rate of the whole system, and what breaks beyond it: `make soak`."""
