"""Measurements that are not made twice: one line each in a file of a node's scratch folder."""

import json
from collections.abc import Callable
from pathlib import Path


class Journal:
    """Numbers by key. A line that a kill cut short is measured again."""

    def __init__(self, path: Path):
        self._path, self._known = path, dict[str, list[float]]()
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        for line in lines:
            if line.endswith("\n"):
                key, values = json.loads(line)
                self._known[key] = values
        if lines and not lines[-1].endswith("\n"):
            path.write_text("".join(lines[:-1]), encoding="utf-8")

    def get(self, key: str, measure: Callable[[], list[float]]) -> list[float]:
        if key not in self._known:
            self._known[key] = measure()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self._known[key]]) + "\n")
        return self._known[key]
