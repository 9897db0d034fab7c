"""`python -m benchmarks.gpu`: the full-size pair on a GPU."""
