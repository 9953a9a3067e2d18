"""Results: figures of a measurement, CPU time, the environment, and criteria."""
