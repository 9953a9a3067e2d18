"""Memory, CPU and open files of each process: `make bench-resources`."""
