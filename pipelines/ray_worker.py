"""What runs on the machines of a Ray cluster: an errand, a task with the way to its inputs.

A stage runs as it does at home, in a process of a LocalExecutor: with the same environment, and when it dies, the Ray
worker around it lives to say so. That process is kept for the next task.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.digests import Digests
from pipelines.errors import StageError, TapeoutError
from pipelines.execute import Outcome, Report, Task
from pipelines.transport import Remote
from pipelines.tree import Tree, read_tree
from pipelines.workers import LocalExecutor

LOG = 1 << 20  # bytes of a log's end that travel
PARENT = os.getppid()  # Ray's process on this machine
HERE: dict[Path, LocalExecutor] = {}  # by working folder; kept while Ray keeps this process


@dataclass(frozen=True)
class Errand:
    """A task on its way. remote: settings of the DVC remote that holds `inputs`, or None where folders are shared."""

    task: Task
    remote: Mapping[str, Any] | None
    inputs: Mapping[str, Tree]


@dataclass(frozen=True)
class Begun:
    """The task has found a place. host: the machine's name."""

    host: str


@dataclass(frozen=True)
class Returned:
    """What comes back where no folder is shared. tree: the artifact, which the remote holds; None if there is none."""

    outcome: Outcome
    tree: Tree | None
    log: bytes
    metrics: bytes


def run_errand(errand: Errand) -> Iterator[Begun | Report | Returned | Outcome]:
    """Run a task; yield what it says. The last is a Returned or an Outcome."""
    yield Begun(platform.node())
    try:
        check_libraries(errand.task)
        if errand.remote is None:
            yield from run_shared(errand.task)
        else:
            yield from run_away(errand, Remote(errand.remote))
    except TapeoutError as error:
        yield Outcome.of(errand.task.node, 0.0, error)


def run_shared(task: Task) -> Iterator[Report | Outcome]:
    """Run a task on the folders that all machines see."""
    if not task.out.is_dir():
        raise StageError(
            f"{task.node}: the machine {platform.node()} does not see the project's folder: {task.out} is not there",
            hint="share the folder under the same path, or move artifacts through a DVC remote: executor.store=NAME",
        )
    yield from run_here(task, Path(task.import_roots[0]))


def run_away(errand: Errand, remote: Remote) -> Iterator[Report | Returned]:
    """Run a task in a folder of its own: fetch and check the inputs, run, bring the artifact to the remote."""
    with tempfile.TemporaryDirectory(prefix="tapeout-") as name:
        folder = Path(name)
        code = Path.cwd()  # where Ray has unpacked what pack_code has packed
        out, scratch, log, metrics = (folder / each for each in ("out", "scratch", "log", "measurements.jsonl"))
        inputs = {parameter: folder / "inputs" / parameter for parameter in errand.inputs}
        for path in (out, scratch, *inputs.values()):
            path.mkdir(parents=True)
        for parameter, needed in errand.inputs.items():
            remote.fetch(needed, inputs[parameter])
        roots = (str(code),)
        task = replace(
            errand.task, import_roots=roots, inputs=inputs, out=out, scratch=scratch, log=log, metrics=metrics
        )
        for message in run_here(task, code):
            if isinstance(message, Report):
                yield message
                continue
            tree = read_tree(task.out, Digests(Path(os.devnull))) if message.passed else None
            if tree is not None:
                remote.push(task.out, tree)
            yield Returned(message, tree, read_end(log), read_end(metrics))


def run_here(task: Task, folder: Path) -> Iterator[Report | Outcome]:
    """Run a task in a process of this machine, with `folder` as its working folder."""
    local = HERE.setdefault(folder, LocalExecutor(folder, jobs=1, memory_mib=0))
    local.submit(task)
    while True:
        for message in local.wait(0.5):
            if isinstance(message, Outcome) and message.lost:
                hint = "if memory ran out: say what the stage takes, resources: {memory_mib: N}"
                message = replace(message, hint=hint)
            yield message
            if isinstance(message, Outcome):
                return
        if os.getppid() != PARENT:  # the machine counts as lost, and the task is tried elsewhere: stop here
            os._exit(1)


def check_libraries(task: Task) -> None:
    """Raise StageError where this machine has other versions than the task's key says: its result could be another."""
    for name, wanted in task.libraries.items():
        try:
            found = platform.python_version() if name == "python" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != wanted:
            raise StageError(
                f"{task.node}: the machine {platform.node()} has {name} {found}, and the build has {wanted}",
                hint="install the same versions on every machine: uv pip install -r requirements.lock",
            )


def read_end(path: Path) -> bytes:
    """Return the end of a file, or nothing where it is not there."""
    return path.read_bytes()[-LOG:] if path.is_file() else b""
