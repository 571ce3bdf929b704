"""The process that runs stages: `python -m pipelines.worker FD PARENT`. Heavy libraries are imported only here."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from pipelines.errors import TapeoutError
from pipelines.execute import Outcome, Report, Stale, Task, kind_of
from pipelines.files import HINTS, storing
from pipelines.given import invoke
from pipelines.loading import EXECUTED, is_stale, load_from_source
from pipelines.mapping import Caller
from pipelines.workspace import Event, Log, Metric, Workspace

SENDING = threading.Lock()  # a stage may report from several threads
TOLD: dict[str, dict[str, str]] = {}  # what the build knows that this process has executed, by the map that it was told
HERE = str(Path(__file__).parent)
SHOWN = 12  # lines of a failed node's log
PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends


def main() -> None:
    """Run tasks as they come down the line, until it is closed."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=leave_with_parent, args=(int(sys.argv[2]),), daemon=True).start()
    start = Start()
    with Connection(descriptor) as line:
        while True:
            try:
                task: Task = line.recv()
            except EOFError:
                return
            start.restore()
            if is_stale():
                line.send(Stale(task.node))
                return
            load_from_source(task.import_roots, {name.partition(".")[0] for name in (task.run, *task.calls)})
            outcome = run(task, line)
            with SENDING:
                line.send(outcome)


class Start:
    """What this process is when it starts, to which it returns before each task: a stage may change it."""

    def __init__(self) -> None:
        self.folder = os.getcwd()
        self.environment = dict(os.environ)
        self.paths = list(sys.path)
        self.umask = os.umask(0o022)
        os.umask(self.umask)

    def restore(self) -> None:
        os.chdir(self.folder)
        os.umask(self.umask)
        sys.path[:] = self.paths
        if dict(os.environ) != self.environment:
            os.environ.clear()
            os.environ.update(self.environment)


def run(task: Task, line: Connection) -> Outcome:
    """Run a task with everything that it prints in its log."""
    started = time.monotonic()
    error = hint = tail = kind = result = ""
    forget_peak()
    try:
        if task.item is None:
            task.log.write_bytes(b"")
        log = open(task.log, "a", encoding="utf-8")  # noqa: SIM115 (closed below); what a stage maps writes there, too
    except OSError as refused:
        return Outcome(task.node, 0.0, f"{task.log} cannot be written: {refused.strerror}")
    with log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            result = invoke(task, workspace(task, line))
        except TapeoutError as found:
            kind = kind_of(found)
            error, hint, tail = str(found.message) or type(found).__name__, found.hint, log_tail(task.log)
            explain()
        except OSError as found:
            place = found.filename or (task.out.parent if found.errno == errno.ENOSPC else "")
            error = f"{task.run} failed: {type(found).__name__}: {found.strerror or found}{place and f': {place}'}"
            explain()
            hint = HINTS.get(found.errno or 0, "")  # of the machine's making, so that a traceback says no more
            hint, tail = (f"{hint}; its log: {task.log}", "") if hint else ("", log_tail(task.log))
        except BaseException as found:
            error = f"{task.run} failed: {type(found).__name__}: {found}"
            explain()
            tail = log_tail(task.log)
        flush()
    return Outcome(
        task.node,
        time.monotonic() - started,
        error,
        hint,
        tail,
        memory_mib=peak_memory(),
        executed=executed_since(task.item.id if task.item else ""),
        result=result,
        kind=kind,
    )


def executed_since(told: str) -> dict[str, str]:
    """Return {module: sha256 of its bytes} of what this process has executed; of a map, only once while it is that."""
    found = {module: sha256 for module, (_, sha256) in EXECUTED.items()}
    if told and TOLD.get(told) == found:
        return {}
    TOLD.clear()
    TOLD[told] = found
    return found


def explain() -> None:
    """Put the traceback of the error in hand into the node's log, from where the stage's own code begins.

    A full disk has no room for it.
    """
    kind, error, frames = sys.exc_info()
    while frames is not None and frames.tb_next and frames.tb_frame.f_code.co_filename.startswith(HERE):
        frames = frames.tb_next
    with contextlib.suppress(OSError):
        traceback.print_exception(kind, error, frames)


def flush() -> None:
    """Bring what the stage has printed into its log, if there is room."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def log_tail(log: Path) -> str:
    """Return the last lines of a node's log, and where the whole of it is; "" where it says nothing."""
    flush()
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join([f"the end of its log, {log}:", *(f"| {line}" for line in lines[-SHOWN:])]) if lines else ""


def forget_peak() -> None:
    """Let the kernel measure this process's peak memory anew, where it can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the peak of this process's resident memory in MiB: since `forget_peak`, or ever."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) >> 10
    return 0


def workspace(task: Task, line: Connection) -> Workspace:
    """Return the stage's workspace, whose events go up the line, into the log and into the file of measurements."""
    last = 0.0

    def send(event: Event) -> None:
        nonlocal last
        if isinstance(event, Log):
            print(event.text, flush=True)
        elif isinstance(event, Metric):
            with storing(task.metrics):
                task.metrics.parent.mkdir(parents=True, exist_ok=True)
                with open(task.metrics, "a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(event)) + "\n")
        elif time.monotonic() - last > 0.1 or event.done >= event.total > 0:
            last = time.monotonic()
            tell(Report(task.node, event))

    def tell(message: object) -> None:
        with SENDING:
            line.send(message)

    return Workspace(task.out, task.scratch, send, Caller(task, tell, line.recv))


def leave_with_parent(parent: int, patience: float = 0.0) -> None:
    """End this process when the build that started it is gone; at once where the kernel sees to it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(patience)
    os._exit(1)


if __name__ == "__main__":
    main()
