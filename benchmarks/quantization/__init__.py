"""The parts of benchmarks/quantization.py: the peers, each in a process of its own, ours, the judge, the targets."""
