"""How a project's modules are imported: from their source, never from a .pyc, with a note of what was executed.

Python takes a .pyc for good while its source has the same size and the same time in whole seconds; a node's key tells
such sources apart. Libraries keep theirs, and so does this package, whose start-up would suffer.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

EXECUTED: dict[str, tuple[str, str]] = {}  # {module: (file, sha256 of its bytes)} of this process
FRESH: list[tuple[str, int, int, int, int]] = []  # the marks of EXECUTED's files when they were last compared


def load_from_source(roots: Iterable[str | Path], packages: Iterable[str] = ()) -> None:
    """Import modules under `roots` and in `packages` from their source from now on."""
    sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, ProjectFinder)]
    place = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
    sys.meta_path.insert(place, ProjectFinder(roots, packages))


def is_stale() -> bool:
    """Say whether a module that this process has executed is another one on the disk now."""
    marks = marks_of_sources()
    if marks == FRESH:
        return False
    importlib.invalidate_caches()
    if any(differs(module, file, sha256) for module, (file, sha256) in EXECUTED.items()):
        return True
    FRESH[:] = marks
    return False


def marks_of_sources() -> list[tuple[str, int, int, int, int]]:
    """Return what `stat` says of the executed files, and of the folders in which others could appear before them."""
    files = {file for file, _ in EXECUTED.values()}
    found = []
    for path in sorted({*files, *map(os.path.dirname, files), *sys.path}):
        with contextlib.suppress(OSError):
            stat = os.stat(path or ".")
            found.append((path, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino))
    return found


def differs(module: str, file: str, sha256: str) -> bool:
    """Say whether `module` would now be imported from another file than `file`, or from other bytes."""
    parent = module.rpartition(".")[0]
    folders = list(getattr(sys.modules.get(parent), "__path__", ())) if parent else None
    spec = PathFinder.find_spec(module, folders)
    return spec is None or spec.origin != file or not os.path.isfile(file) or digest(Path(file).read_bytes()) != sha256


class ProjectFinder:
    """Finds what Python's own finder finds, and gives a project's modules another loader."""

    def __init__(self, roots: Iterable[str | Path], packages: Iterable[str]) -> None:
        self.roots = [within(root) for root in roots]
        self.packages = frozenset(packages)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader and self.is_project(name, spec.loader.path):
            spec.loader = SourceLoader(name, spec.loader.path)
        return spec

    def is_project(self, name: str, file: str) -> bool:
        """Say whether a module is the project's: a virtual environment in the project's folder is not."""
        package = name.partition(".")[0]
        if package in self.packages or package == "pipelines":
            return package != "pipelines"
        root = max((len(root) for root in self.roots if file.startswith(root)), default=0)
        return root > 0 and not any(len(within(path)) > root and file.startswith(within(path)) for path in sys.path)


class SourceLoader(SourceFileLoader):
    """Compiles a module's source each time, and notes its bytes."""

    def get_code(self, fullname: str) -> CodeType:
        data = self.get_data(self.path)
        EXECUTED[fullname] = (self.path, digest(data))
        code: Any = self.source_to_code(data, self.path)
        return code  # type: ignore[no-any-return]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def within(folder: str | Path) -> str:
    """Return what the paths in a folder begin with."""
    return f"{str(folder).rstrip(os.sep)}{os.sep}"
