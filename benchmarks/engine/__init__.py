"""The parts of benchmarks/engine.py: the projects that it builds, the peers that it runs, how it measures and shows."""
