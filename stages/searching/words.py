"""Architectures and costs in words, for summaries and errors."""

from collections.abc import Mapping


def described(architecture: Mapping[str, int]) -> str:
    """Such as "depth 3, ffn 192, tower_width 96"."""
    return ", ".join(f"{name} {value}" for name, value in sorted(architecture.items()))


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.2f} MiB"
