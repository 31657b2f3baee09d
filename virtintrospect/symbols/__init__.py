"""Symbols and types of kernels: one file for each format they come in."""
