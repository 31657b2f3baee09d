"""Figures of audits of a fleet, and of their report."""
