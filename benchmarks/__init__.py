"""Speed as ratios of things measured side by side: `python -m benchmarks --help`."""
