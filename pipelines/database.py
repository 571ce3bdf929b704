"""MLflow's SQLite file: its tables are made by one process at a time. Two that make them at once break it for good."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

SQLITE = re.compile(r"sqlite(?:\+\w+)?:///([^?]+)")


@contextlib.contextmanager
def making_tables(uri: str) -> Iterator[None]:
    """Keep others out who go through here, by a lock on the folder of the file; another kind of store needs none."""
    found = SQLITE.match(uri)
    if not found:
        yield
        return
    folder = Path(found[1]).parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
