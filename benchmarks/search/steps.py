"""Long steps, each made once and kept by all that it depends on: killed, the benchmark goes on where it was.

Several processes can share the folder: what one of them makes, another waits for.
"""

import ast
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.workspace import Event, Log, Workspace
from search.settings import REPOSITORY


class Steps:
    """folder: where results are kept, and spent.jsonl: what each step that ran to its end in one go has cost."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def made(
        self, name: str, make: Callable[[Workspace], Any], *, of: Any, sources: Sequence[str], **given: Any
    ) -> Path:
        """The folder that make leaves in its workspace's `out`. of: what the result depends on beside `sources`, files
        and folders of stages/; its repr counts. given: what is given to functions that are mapped."""
        mark = hashlib.sha256(repr(of).encode()).hexdigest()[:12]
        place = self.folder / f"{name}-{mark}-{code(tuple(sources))}"
        if not place.is_dir():
            with self._alone(place):
                if not place.is_dir():
                    self._make(place, make, given)
        return place

    def _make(self, place: Path, make: Callable[[Workspace], Any], given: dict[str, Any]) -> None:
        part, scratch = (place.with_name(f"{place.name}.{each}") for each in ("part", "scratch"))
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        wall, before = time.monotonic(), os.times()
        say(f"{place.name}: begins" + (", where it was killed" if scratch.exists() else ""))
        make(Workspace(part, scratch, _teller(place.name), given=given))
        part.rename(place)
        shutil.rmtree(scratch, ignore_errors=True)
        after = os.times()
        spent = {"step": place.name, "wall": round(time.monotonic() - wall, 1)}
        spent["cpu"] = round(sum(after[:4]) - sum(before[:4]), 1)
        with (self.folder / "spent.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(spent) + "\n")
        say(f"{place.name}: {spent['cpu']} CPU s, {spent['wall']} s")

    @contextmanager
    def _alone(self, place: Path) -> Iterator[None]:
        """The kernel lets go of the lock of a process that is killed."""
        with place.with_name(f"{place.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{place.name}: another process makes it; waiting")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@cache
def code(sources: tuple[str, ...]) -> str:
    """A digest of what those sources do: comments, docstrings and layout count nothing."""
    digest = hashlib.sha256()
    for place in (REPOSITORY / "stages" / name for name in sources):
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                    node.body = node.body[1:]
            digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:8]


def digest_of(*paths: Path) -> str:
    """Of the files' contents."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _teller(name: str) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        if isinstance(event, Log):
            say(f"{name}: {event.text}")

    return tell
