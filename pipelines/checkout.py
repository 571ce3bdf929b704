"""One checkout of a project: its workspace, its store and what it remembers, for one build at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import gates
from pipelines.digests import READING, Digests, hash_json
from pipelines.errors import StageError, StoreError
from pipelines.files import storing, write_where_it_differs
from pipelines.keys import Keys
from pipelines.ledger import Ledger, Record, read_record
from pipelines.plan import Node, Plan
from pipelines.project import Project
from pipelines.store import Store
from pipelines.tree import Tree, read_tree, walk

RUNNING = b"A build runs, or was killed.\n"  # in the lock's file; who finds it there cleans up after the one killed


@contextlib.contextmanager
def opened(project: Project, waiting: Callable[[], None]) -> Iterator[Checkout]:
    """Give the checkout to this process alone; `waiting` is called first where another process has it."""
    with storing(project.state / "lock"):
        project.state.mkdir(exist_ok=True)
        lock = open(project.state / "lock", "a+")  # noqa: SIM115 (closed below)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        checkout = Checkout(project)
        lock.seek(0)
        if lock.read():
            checkout.sweep()
        with storing(project.state / "lock"):
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), RUNNING)  # past Python's buffer, which would fail once more when closed
        try:
            yield checkout
        finally:
            checkout.clear()
            with contextlib.suppress(OSError, StoreError):  # what cannot be remembered is found out again
                checkout.digests.save()
            with contextlib.suppress(OSError):
                os.ftruncate(lock.fileno(), 0)


class Checkout:
    """Knows what is built. Safe only inside `opened`, unless it is `looking`, which changes nothing but its memory."""

    def __init__(self, project: Project, looking: bool = False) -> None:
        self.project = project
        self.digests = Digests(project.state / "digests.json")
        self.staging = project.state / "staging"
        self.store = Store(project.cache, self.staging, self.digests, looking)
        self.ledger = Ledger(project.state / "ledger")
        self.keys = Keys(project, self.digests)

    def clear(self) -> None:
        """Remove what a killed build has left unfinished."""
        if self.staging.is_dir():
            shutil.rmtree(self.staging, ignore_errors=True)

    def sweep(self) -> None:
        """Remove the files that a killed process was writing beside their places."""
        root, state = self.project.root, self.project.state
        artifacts = self.project.artifacts
        own = (state / name for name in ("", "builds", "configurations", "outbox"))
        places = (root, artifacts, artifacts / "build", *own, *self.ledger.folder.glob("??"))
        for folder in (*places, *self.store.objects.glob("??")):
            for path in folder.glob(".*"):
                if re.fullmatch(r"[0-9a-f]{32}", path.name.rpartition(".")[2]) and path.is_file():
                    path.unlink(missing_ok=True)
        self.clear()

    def key_of(self, ingredients: Mapping[str, Any]) -> str:
        return hash_json(ingredients)

    def find(self, node: Node, ingredients: Mapping[str, Any]) -> Record | None:
        """Return the record of an earlier, intact result with these ingredients, or None.

        A result without the gates, the summary or the figures that are asked for now is none.
        """
        key = self.key_of(ingredients)
        own = self.last(node)
        if own is not None and own.key == key and (self.shows(node, own) or self.store.holds_tree(own.tree)):
            return own if self.has_gates(node, own) else None
        known = self.ledger.get(key)
        if known is not None and (self.store.holds_tree(known.tree) or self.shows(node, known)):
            return known if self.has_gates(node, known) else None
        return None

    def has_gates(self, node: Node, record: Record) -> bool:
        """Say whether a result that is here has the files and the gates that its stage declares, if any."""
        if any(Path(name).as_posix() not in record.tree.files for name in node.stage.declared_files):
            return False
        if node.stage.gates is None:
            return True
        digest = record.tree.files[Path(node.stage.gates).as_posix()]
        stored = self.store.holds(digest)
        shown = self.project.root / node.folder / node.stage.gates
        try:
            gates.read_gates(self.store.object_path(digest.md5) if stored else shown, node)
        except StageError:
            return False
        return True

    def settle(self, node: Node, record: Record) -> None:
        """Make workspace and store hold `record`, which `find` has returned."""
        folder = self.project.root / node.folder
        if self.shows(node, record):
            self.store.put(folder, record.tree)
        else:
            self.store.restore(record.tree, folder)
            self.store.put_listing(record.tree)
        self._remember(record)
        self._label(node, record)

    def accept(self, node: Node, ingredients: Mapping[str, Any], folder: Path) -> Record:
        """Take in what a stage has left in `folder`: store it, remember it, show it in the workspace.

        Raises StageError where a file of it is still being written, StoreError where it cannot be read or kept.
        """
        drop_empty_folders(folder)
        record = Record(ingredients, read_tree(folder, self.digests))
        self.store.put(folder, record.tree)
        self._remember(record)  # from here on a kill loses nothing of it
        self.store.publish(folder, self.project.root / node.folder, record.tree)
        self._label(node, record)
        return record

    def withdraw(self, node: Node) -> bool:
        """Remove the workspace's older result of a node that could not be made now. The store keeps it."""
        paths = (self.project.root / node.folder, self.project.root / node.record)
        if not any(path.exists() for path in paths):
            return False
        for path in paths:
            self.store.discard(path)
        return True

    def last(self, node: Node) -> Record | None:
        """Return the workspace's record of the node, whatever its key."""
        return read_record(f"{self.project.root}/{node.record}")

    def shows(self, node: Node, record: Record) -> bool:
        """Say whether the workspace's folder holds exactly what `record` says."""
        found = self.shown(node)
        return found is not None and found.files == record.tree.files

    def shown(self, node: Node) -> Tree | None:
        """Return what the workspace's folder of the node holds, or None where there is none."""
        folder = f"{self.project.root}/{node.folder}"
        try:
            return read_tree(folder, self.digests) if os.path.isdir(folder) else None
        except StoreError:
            return None

    def input_size(self, node: Node, plan: Plan) -> int:
        """Return the bytes of a node's inputs, those from outside among them."""
        files = [path for key in node.stage.sources for path in self.keys.source_paths(node, key)]
        folders = [self.project.root / plan.nodes[need].folder for need in node.inputs.values()]
        files += [folder / name for folder in folders if folder.is_dir() for name in walk(folder)]
        try:
            return sum(path.stat().st_size for path in files)
        except OSError as error:
            raise StoreError(f"{error.filename} cannot be read: {error.strerror}", hint=READING) from error

    def _remember(self, record: Record) -> None:
        digest = self.store.put_bytes(record.data)
        stored = self.store.object_path(digest.md5)
        if self.ledger.add_stored(record, stored):
            self.digests.learn(stored, digest)
        else:
            self.ledger.add(record)

    def _label(self, node: Node, record: Record) -> None:
        write_where_it_differs(f"{self.project.root}/{node.record}", record.data, sync=False)  # sealed


def drop_empty_folders(folder: Path) -> None:
    """Remove the folders under `folder` that hold no file: neither git nor DVC can keep one."""
    for base, _, _ in os.walk(folder, topdown=False):
        if base != str(folder):
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(base)
