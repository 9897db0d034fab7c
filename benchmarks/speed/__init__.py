"""How fast the service is, as ratios within one run: `python -m benchmarks.speed`."""
