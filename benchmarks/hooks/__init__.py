"""What the hooks cost: ``python -m benchmarks.hooks N``."""
