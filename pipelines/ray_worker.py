"""What runs on the machines of a Ray cluster: an errand, a task with the way to its inputs.

A stage runs as it does at home, in a process of a LocalExecutor: with the same environment, and when it dies, the Ray
worker around it lives to say so. That process is kept for the next task.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.digests import Digests
from pipelines.errors import StageError, TapeoutError
from pipelines.execute import Outcome, Report, Task
from pipelines.transport import Remote
from pipelines.tree import Tree, read_tree
from pipelines.workers import LocalExecutor

if TYPE_CHECKING:
    from pipelines.ray_items import RayItems

INPUTS = ".tapeout-inputs-"  # and the process whose they are
LOG = 1 << 20  # bytes of a log's end that travel
PARENT = os.getppid()  # Ray's process on this machine
HERE: dict[Path, LocalExecutor] = {}  # by working folder; kept while Ray keeps this process
KEPT: dict[str, tempfile.TemporaryDirectory[str]] = {}  # inputs of items, by the digest of what they hold
SERVED: dict[Path, str] = {}  # whose items the process there has worked on last, "" where it has run a stage


@dataclass(frozen=True)
class Errand:
    """A task on its way: a stage, or an item of what one maps.

    remote: settings of the DVC remote that holds `inputs`, or None where folders are shared.
    """

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
    if not (task.out if task.item is None else task.log).exists():
        raise StageError(
            f"{task.node}: the machine {platform.node()} does not see the project's folder: {task.out} is not there",
            hint="share the folder under the same path, or move artifacts through a DVC remote: executor.store=NAME",
        )
    yield from run_here(Errand(task, None, {}), Path(task.import_roots[0]))


def run_away(errand: Errand, remote: Remote) -> Iterator[Report | Returned]:
    """Run a task in a folder of its own: fetch and check the inputs, run, bring the artifact to the remote."""
    with tempfile.TemporaryDirectory(prefix="tapeout-") as name:
        folder, item = Path(name), errand.task.item
        code = Path.cwd()  # where Ray has unpacked what pack_code has packed
        own = folder / "own"
        out, scratch, log, metrics = own / "out", own / "scratch", folder / "log", folder / "measurements.jsonl"
        for path in (out, scratch):
            path.mkdir(parents=True)
        if item is None:
            inputs = {parameter: folder / "inputs" / parameter for parameter in errand.inputs}
            for parameter, needed in errand.inputs.items():
                inputs[parameter].mkdir(parents=True)
                remote.fetch(needed, inputs[parameter])
        else:
            inputs = {parameter: kept(needed, remote, code) for parameter, needed in errand.inputs.items()}
        roots = (str(code),)
        task = replace(
            errand.task, import_roots=roots, inputs=inputs, out=out, scratch=scratch, log=log, metrics=metrics
        )
        for message in run_here(replace(errand, task=task), code):
            if isinstance(message, Report):
                yield message
                continue
            wanted = message.passed and (item is None or item.folders)
            tree = read_tree(task.out, Digests(Path(os.devnull))) if wanted else None
            if tree is not None and tree.files:
                remote.push(task.out, tree)
            yield Returned(message, tree, read_end(log), read_end(metrics))


def kept(needed: Tree, remote: Remote, code: Path) -> Path:
    """Return a folder with an input of items, fetched once: other items of this process will need it, too.

    It lies in Ray's own folder of this session, in `code`, which goes with the cluster. On one that stays, the next
    build's processes remove what those have left that are no more: Ray kills them.
    """
    if not KEPT:
        for path in code.parent.glob(f"*/{INPUTS}*"):
            process = path.name.removeprefix(INPUTS).partition("-")[0]
            if process.isdigit() and not Path("/proc", process).exists():
                shutil.rmtree(path, ignore_errors=True)
    if needed.digest not in KEPT:
        folder = tempfile.TemporaryDirectory(prefix=f"{INPUTS}{os.getpid()}-", dir=code)
        remote.fetch(needed, Path(folder.name))
        KEPT[needed.digest] = folder
    return Path(KEPT[needed.digest].name)


def run_here(errand: Errand, folder: Path) -> Iterator[Report | Outcome]:
    """Run a task in a process of this machine, with `folder` as its working folder; what it maps, on the cluster."""
    task = errand.task
    local = process_for(task, folder)
    local.submit(task)
    with contextlib.ExitStack() as stack:
        mapped: RayItems | None = None
        while True:
            waits = local.items.waits(task.node)
            for message in local.wait(0.002 if waits else 0.05 if mapped else 0.5):
                if isinstance(message, Outcome) and message.lost:
                    hint = "if memory ran out: say what the stage takes, resources: {memory_mib: N}"
                    message = replace(message, hint=hint)
                yield message
                if isinstance(message, Outcome):
                    return
            if mapped is None and local.items.maps:
                from pipelines.ray_items import RayItems

                mapped = RayItems(errand, local.items)
                stack.callback(mapped.close)
            if mapped is not None:
                for report in mapped.step(0.2 if local.items.waits(task.node) else 0.0):  # noqa: UP028
                    yield report  # Ray sends into its generators, and a list takes nothing
                local.answer()
            if os.getppid() != PARENT:  # the machine counts as lost, and the task is tried elsewhere: stop here
                os._exit(1)


def process_for(task: Task, folder: Path) -> LocalExecutor:
    """Return what runs tasks in `folder`: its process stays, unless it holds what another stage's items have left."""
    local = HERE.setdefault(folder, LocalExecutor(folder, jobs=1, memory_mib=0, calls=False))
    caller = task.item.caller if task.item else ""
    if SERVED.get(folder, "") not in ("", caller):
        local.release(lambda each: True)
    SERVED[folder] = caller
    return local


def check_libraries(task: Task) -> None:
    """Raise StageError where this machine has other versions than the task's key says: its result could be another."""
    for name, wanted in task.libraries.items():
        found = installed(name)
        if found != wanted:
            raise StageError(
                f"{task.node}: the machine {platform.node()} has {name} {found}, and the build has {wanted}",
                hint="install the same versions on every machine: uv pip install -r requirements.lock",
            )


@cache
def installed(name: str) -> str:
    """Return this process's version of a library, or "none"; looked up once, for items come by the hundred."""
    try:
        return platform.python_version() if name == "python" else importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def read_end(path: Path) -> bytes:
    """Return the end of a file, or nothing where it is not there."""
    return path.read_bytes()[-LOG:] if path.is_file() else b""
