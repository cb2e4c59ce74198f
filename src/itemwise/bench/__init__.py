"""Benchmarks: a table to read, and JSON with machine, versions and commit."""
