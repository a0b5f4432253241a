"""Benchmarks: ratios of times that are measured alternately, see `python -m benchmarks --help`."""
