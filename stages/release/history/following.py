"""Waiting until MLflow's registry has followed the history; who brings it there is stages/release/history/syncing.py.

Importing MLflow takes seconds, and commands come in bursts. So a command that has written its entry only waits until
the registry has come that far, and starts the process where none runs. That one goes on for some seconds after the last
entry, and what others write meanwhile is its work too. What MLflow refuses is remembered for `tapeout release status`,
and tried again by the next command: the history does not wait for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.files import storing
from pipelines.project import Project
from pipelines.sealed import read_sealed, write_sealed
from stages.release.layout import Releases

PATIENCE = 60.0  # s that a command waits for the registry
PAUSE = 0.05  # s between two looks
STARTS = 3  # of the process, by one command, where it ends without a word
QUIET = {  # a server that does not answer is given up before `PATIENCE` ends
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


@dataclass(frozen=True)
class Progress:
    """How far the registry is. uri: MLflow's; "" where all is to be looked at again. sequence, digest: of the last
    entry that it holds. attempt: counts what was tried. failed: why the last attempt failed, or ""."""

    uri: str = ""
    sequence: int = 0
    digest: str = ""
    attempt: int = 0
    failed: str = ""

    def covers(self, uri: str, sequence: int, history: Path) -> bool:
        """Say whether the registry at `uri` holds this history up to the entry of that number."""
        return (
            self.uri == uri
            and self.sequence >= sequence
            and (self.sequence == 0 or line_digest(history, self.sequence) == self.digest)
        )


def progress_of(project: Project) -> Progress:
    known = read_sealed(kept_at(project)) or {}
    return Progress(**known) if set(known) == set(Progress.__dataclass_fields__) else Progress()


def kept_at(project: Project) -> Path:
    return project.state / "registry.json"


def follow(project: Project, uri: str, sequence: int, force: bool = False) -> str:
    """Wait until MLflow's registry at `uri` holds the history up to `sequence`; return "", or why it does not.

    force: look at all of it again, whatever is remembered. Raises StoreError.
    """
    history = Releases(project).history
    begun, started = progress_of(project).attempt, 0
    if force:
        write_sealed(kept_at(project), vars(Progress(attempt=begun)))
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        known = progress_of(project)
        if known.covers(uri, sequence, history):
            return ""
        if known.failed and known.attempt > begun:
            return known.failed
        if start(project, uri, started):
            started += 1
            if started > STARTS:
                return f"the process that brings it there ends without a word: {project.relative(log_of(project))}"
        time.sleep(PAUSE)
    return f"MLflow has not answered within {PATIENCE:.0f} s; 'tapeout release status --sync' tries again"


def start(project: Project, uri: str, started: int) -> bool:
    """Start the process, unless one runs. It inherits the lock, and so has it until it ends."""
    with storing(project.state):
        project.state.mkdir(exist_ok=True)
        lock = os.open(project.state / "registry.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if started == STARTS:
            return True
        with storing(log_of(project)), open(log_of(project), "wb") as log:
            subprocess.Popen(
                [sys.executable, "-P", "-m", "stages.release.history.syncing", str(project.root), uri],
                cwd=project.root,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,  # the command's end is not its own
            )
        return True
    finally:
        os.close(lock)


def log_of(project: Project) -> Path:
    return project.state / "registry.log"


def environment() -> Mapping[str, str]:
    import stages

    paths = [str(Path(stages.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {**QUIET, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def line_digest(history: Path, number: int) -> str:
    """Return the sha256 of a line of the history, or "" where there is no such line."""
    try:
        lines = history.read_bytes().split(b"\n")
    except OSError:
        return ""
    return hashlib.sha256(lines[number - 1]).hexdigest() if 0 < number <= len(lines) and lines[number - 1] else ""
