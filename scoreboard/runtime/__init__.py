"""What every process needs: settings, lifecycle, logs and metrics, workers."""
