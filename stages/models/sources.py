"""Where a checkpoint comes from: a folder."""

from collections.abc import Callable
from pathlib import Path


def folder_of(path: str, revision: str | None, log: Callable[[str], None]) -> Path:
    """The folder that holds the checkpoint."""
    return Path(path)
