"""Figures, measured on real guests: ``make bench``. docs/performance.md has a run's results."""
