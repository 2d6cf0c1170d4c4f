"""Speed beside the peers, measured in turn in one run and reported as ratios: `python -m benchmarks`."""
