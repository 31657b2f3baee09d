"""What the daemon costs: ``python -m benchmarks.daemon``."""
