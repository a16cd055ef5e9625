"""What `benchmarks/bench.py` measures: the sides of each ratio, how they are timed, and the bars."""
