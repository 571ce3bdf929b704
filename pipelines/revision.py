"""The revision of the project's sources, as git has it, and what differs from it."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.project import Project

WRITTEN = {"dvc.yaml", "dvc.lock", "params.yaml"}  # by a build, so that they are no source of it
APART = ("releases/",)  # what comes after a build
MOST = 100  # changed files that are named
ELSEWHERE = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}  # would have git look at another repository


@dataclass(frozen=True)
class Revision:
    """commit: in hex, None outside a git repository and before the first commit. folder: the project's, in the
    repository, "" for its root. origin: where the repository is published, without a user's name, or None. changed:
    the project's files that are not as the commit has them, untracked ones too, leaving out what builds write."""

    commit: str | None
    folder: str = ""
    origin: str | None = None
    changed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def revision_of(project: Project) -> Revision:
    """Return the revision that the project's folder is at now."""
    told = git(project, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=no", "--no-renames")
    if told is None:
        return Revision(None)
    commit, changed = None, []
    for line in told.split("\0"):
        if line.startswith("# branch.oid "):
            commit = line.split(" ")[2]
        elif line[:2] in ("1 ", "u "):
            changed.append(line.split(" ", 8 if line[0] == "1" else 10)[-1])
    prefix = (git(project, "rev-parse", "--show-prefix") or "").strip()
    own = {path.removeprefix(prefix) for path in changed if path.startswith(prefix)} | unseen(project)
    kept = sorted(path for path in own if not is_written(path))
    known = commit if commit != "(initial)" else None
    return Revision(known, prefix.rstrip("/"), origin_of(project), tuple(kept[:MOST]))


def unseen(project: Project) -> set[str]:
    """Return the files that git status may not tell of: those that git was told to take as unchanged, and untracked
    ones, of which only the project's own .gitignore says which count for nothing."""
    flagged = (git(project, "ls-files", "-v", "-z") or "").split("\0")
    others = git(project, "ls-files", "-z", "--others", "--directory", "--exclude-per-directory=.gitignore") or ""
    return {line[2:] for line in flagged if line and not line.startswith("H ")} | set(filter(None, others.split("\0")))


def is_written(path: str) -> bool:
    return path in WRITTEN or path.startswith(APART)


def origin_of(project: Project) -> str | None:
    """Return the address of the remote `origin`, unless it is a path of this machine; who reads it is left out."""
    address = (git(project, "config", "--get", "remote.origin.url") or "").strip()
    found = re.fullmatch(r"(?:(https?|ssh|git)://)?(?:[^@/\s]+@)?([\w.-]+\.[\w-]+)[:/](?!/)(\S+)", address)
    return f"git+{found[1] or 'ssh'}://{found[2]}/{found[3]}" if found else None


def git(project: Project, *words: str) -> str | None:
    """Return what git says of the project, or None where it has nothing to say. It changes nothing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(project.root), *words],
            capture_output=True,
            env={
                **{name: each for name, each in os.environ.items() if name not in ELSEWHERE},
                "GIT_OPTIONAL_LOCKS": "0",
            },
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else None
