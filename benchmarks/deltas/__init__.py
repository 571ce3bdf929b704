"""Parts of benchmarks/deltas.py."""
