"""What a bundle's folder and its archive have in common: a manifest, and files that are read and hashed once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from pipelines.errors import VerificationError
from stages.release.manifest import AGAIN, File, Manifest

THREADS = 8  # at most; more would only make a disk seek


class Contents(Protocol):
    """A bundle that is open for reading."""

    path: Path
    manifest: Manifest

    def chunks(self, file: File) -> Iterator[memoryview]:
        """Yield a file's bytes; at the end raise VerificationError where they are not what the manifest says."""

    def differences(self) -> Iterator[str]:
        """Hash all files; yield what is missing, not listed, or not as the manifest says, each as a line."""


class DamagedError(VerificationError):
    """Files that are not as the manifest says. lines: one for each."""

    def __init__(self, path: Path, lines: Sequence[str]) -> None:
        count = f"{len(lines)} files are" if len(lines) > 1 else "a file is"
        super().__init__("\n  ".join([f"{path}: {count} not as its manifest says:", *lines]), hint=AGAIN)
        self.lines = list(lines)


@contextlib.contextmanager
def open_bundle(path: Path) -> Iterator[Contents]:
    """Open a bundle's folder or archive; what it holds is not yet hashed. Raises ConfigError, VerificationError."""
    if path.is_dir():
        from stages.release.bundles.folder import opened_folder

        yield opened_folder(path)
    else:
        from stages.release.bundles.archive import open_archive

        with open_archive(path) as archive:
            yield archive


def check_contents(bundle: Contents) -> None:
    """Hash all files. Raises DamagedError, which names all that are not as the manifest says."""
    if lines := list(bundle.differences()):
        raise DamagedError(bundle.path, lines)


def each_of(files: Sequence[File], function: Callable[[File], str]) -> Iterator[str]:
    """Yield function(file) in the files' order; several run at once where there are cores, the large ones first."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if min(cores, len(files)) < 2 or sum(file.size for file in files) < 1 << 22:
        yield from map(function, files)
        return
    with ThreadPoolExecutor(min(cores, THREADS)) as threads:
        large_first = sorted(files, key=lambda file: -file.size)
        results = {file.path: threads.submit(function, file) for file in large_first}
        for file in files:
            yield results[file.path].result()
