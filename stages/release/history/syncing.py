"""The process that makes MLflow's registry what the history says: `python -m` this module, PROJECT URI.

One at a time: it has inherited a lock from the command that started it. See following.py.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipelines.database import making_tables
from pipelines.errors import TapeoutError
from pipelines.project import Project
from pipelines.sealed import write_sealed
from stages.release.history.following import PAUSE, kept_at, progress_of
from stages.release.history.history import History
from stages.release.history.registry import reconcile
from stages.release.history.state import state_of
from stages.release.layout import Releases
from stages.release.signing.keys import trusted_keys

LINGER = 3.0  # s for which it waits for a further entry
TRIES = 8  # at a database that others have locked, or make at this moment
BUSY = re.compile(r"database is locked|already exists|UNIQUE constraint")
SECRET = re.compile(r"//[^/@]*@")
LENGTH = 300  # characters of a reason


def main() -> int:
    """Bring the registry to the end of the history, again for each further entry, until there was none for a while."""
    project, uri = Project(Path(sys.argv[1])), sys.argv[2]
    try:
        serve(project, uri)
    except Exception as error:  # of MLflow, its database, its server, or a damaged history: the command says which
        keep(project, uri, failed=said(error, uri))
        raise
    return 0


def serve(project: Project, uri: str) -> None:
    client = patiently(lambda: opened(uri))
    seen, quiet = None, time.monotonic()
    while time.monotonic() - quiet < LINGER:
        now = mark(project)
        if now is None or (seen and not kept_at(project).is_file()):
            return  # the project has gone: nothing is to be written where it was
        if now != seen or not progress_of(project).uri:
            sync(project, uri, client)
            seen, quiet = now, time.monotonic()
        time.sleep(PAUSE)


def opened(uri: str) -> Any:
    """Return a client of the registry; a database gets its tables. This is where seconds go."""
    from mlflow.tracking import MlflowClient

    with making_tables(uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
    return client


def sync(project: Project, uri: str, client: Any) -> None:
    """Make the registry what the history says now. Raises what MLflow raises, VerificationError."""
    releases = Releases(project)
    state = state_of(History(releases.history).entries(trusted_keys((), releases)))
    patiently(lambda: reconcile(client, state))
    keep(project, uri, sequence=state.sequence, digest=state.digest)


def mark(project: Project) -> tuple[int, int, int] | None:
    """Return what changes with the history's file, or None where there is none."""
    try:
        found = Releases(project).history.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def keep(project: Project, uri: str, failed: str = "", **known: Any) -> None:
    """Write down how far the registry is. After a failure it is where it was."""
    before = progress_of(project)
    now = replace(before, uri=uri, **known) if known or before.uri == uri else type(before)(uri=uri)
    write_sealed(kept_at(project), asdict(replace(now, attempt=before.attempt + 1, failed=failed)))


def patiently(work: Callable[[], Any]) -> Any:
    """Do the work, again where a database was busy. All of it can be done twice."""
    for attempt in range(TRIES):
        try:
            return work()
        except Exception as error:
            if not BUSY.search(str(error)) or attempt == TRIES - 1:
                raise
        time.sleep(0.1 * 2**attempt)


def said(error: Exception, uri: str) -> str:
    """Return an error in one line, without what a URI says in confidence."""
    text = error.message if isinstance(error, TapeoutError) else f"{type(error).__name__}: {error}"
    line = " ".join(str(text).split())
    line = line if len(line) <= LENGTH else f"{line[:LENGTH]}..."
    return SECRET.sub("//...@", line if isinstance(error, TapeoutError) else f"{uri}: {line}")


if __name__ == "__main__":
    sys.exit(main())
