"""The SDK for the web, built: mobile/web/dist from its TypeScript, by npm, where the sources have changed since."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

import stages
from pipelines.errors import ConfigError, StageError

OLDEST = 20  # Node's major version
SOURCES = (
    "src",
    "playground",
    "build.mjs",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "tsconfig.build.json",
)
STAMP = ".built"  # in dist: what it was built from
INSTALLED = ".tapeout-lock"  # in node_modules: the lock file that it was installed from
LINES = 8  # of what npm or the build said, in a message: they begin with what is wrong


def built_sdk(folder: Path | None = None) -> Path:
    """Return the folder of the built SDK, mobile/web/dist; build it first where it is older than its sources.

    folder: mobile/web of a checkout, by default this code's own. Several processes may ask at once: one builds.
    Raises ConfigError where there is no Node that could build it, StageError where npm fails.
    """
    web = folder or Path(stages.__file__).parents[1] / "mobile" / "web"
    if not (web / "package.json").is_file():
        raise ConfigError(
            f"{web}: the SDK's sources are not there",
            hint="run it in a checkout of Tapeout, installed as README says ('make setup')",
        )
    dist, wanted = web / "dist", digest_of(web)
    if stamp(dist / STAMP) == wanted:
        return dist
    check_node()
    with open(web / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp(dist / STAMP) != wanted:
            install(web)
            replace(web, dist, wanted)
    return dist


def digest_of(web: Path) -> str:
    """Return the sha256 over the names and bytes of all that the SDK is built from."""
    total = hashlib.sha256()
    for source in SOURCES:
        paths = [web / source] if (web / source).is_file() else sorted((web / source).rglob("*"))
        for path in paths:
            if path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{path.relative_to(web).as_posix()} {content}\n".encode())
    return total.hexdigest()


def stamp(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def check_node() -> None:
    """Raise ConfigError unless there is a Node that can build the SDK, with its npm."""
    hint = f"install Node {OLDEST} or later with npm (https://nodejs.org, or your system's packages)"
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"the SDK for the web is built by npm, and there is no '{program}' on the PATH", hint=hint
            )
    said = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    found = re.match(r"v(\d+)\.", said)
    if found is None or int(found[1]) < OLDEST:
        raise ConfigError(
            f"the SDK for the web needs Node {OLDEST}, and 'node' is {said or 'none that answers'}", hint=hint
        )


def install(web: Path) -> None:
    """Install just what package-lock.json names, where that is not so already."""
    installed, lock = (
        web / "node_modules" / INSTALLED,
        hashlib.sha256((web / "package-lock.json").read_bytes()).hexdigest(),
    )
    if stamp(installed) == lock:
        return
    hint = "the npm registry must be reachable for the first build; run it again when it is"
    call(web, ["npm", "ci", "--ignore-scripts"], "installing the SDK's packages", hint)
    installed.write_text(lock, encoding="utf-8")


def replace(web: Path, dist: Path, wanted: str) -> None:
    """Build beside dist, and take its place once all of it is there."""
    new = web / "build" / f"dist.{uuid.uuid4().hex}"
    try:
        call(web, ["node", "build.mjs", "--out", str(new)], "building the SDK", f"mend it in {web / 'src'}")
        (new / STAMP).write_text(wanted, encoding="utf-8")
        shutil.rmtree(dist, ignore_errors=True)
        new.rename(dist)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def call(web: Path, words: Sequence[str], what: str, hint: str) -> None:
    """Run a command in the SDK's folder. Raises StageError with the beginning of what it said."""
    environment = {**os.environ, "NO_COLOR": "1", "npm_config_loglevel": "error"}
    result = subprocess.run(words, cwd=web, env=environment, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stderr + result.stdout).splitlines()
        said = [line[:300] for line in lines if line.strip() and not re.match(r"npm error\s+at ", line)]
        raise StageError(
            f"{what} failed ('{' '.join(words[:3])}', exit status {result.returncode}):\n    "
            + "\n    ".join(said[:LINES]),
            hint=hint,
        )
