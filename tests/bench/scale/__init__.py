"""`make bench-scale`: what each step of scaling out costs, as ratios of CPU time."""
