"""Figures, measured: see docs/performance.md."""
