"""The parts of benchmarks/convert.py: the checkpoints, the peers, and a process for each measurement."""
