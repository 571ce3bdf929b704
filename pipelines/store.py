"""The content-addressed store, in the format of DVC's cache: files/md5/<2>/<30>, folders as .dir objects.

DVC trusts any read-only object; this store does not: an object whose `stat` changed since it was last seen is hashed
again, and dropped when it is not what it should be.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.digests import Digests, FileDigest, hash_bytes
from pipelines.files import storing
from pipelines.tree import Tree

FICLONE = 0x40049409  # Linux: share the blocks of another file, copy on write


class Store:
    """Objects by content. `cache` is DVC's cache folder; `scratch`, on the same file system as the workspace, holds
    what is not whole yet. looking: only ask, and leave damaged objects where they are."""

    def __init__(self, cache: Path, scratch: Path, digests: Digests, looking: bool = False) -> None:
        self.objects = cache / "files" / "md5"
        self.scratch = scratch
        self.digests = digests
        self.looking = looking

    def put(self, folder: Path, tree: Tree) -> None:
        """Store the files of `folder`, whose contents are `tree`. Raises StoreError."""
        with storing(self.objects):
            for name, digest in tree.files.items():
                self.put_file(folder / name, digest)
            self.put_bytes(tree.listing, suffix=".dir")

    def put_file(self, path: Path, digest: FileDigest) -> None:
        """Store one file, known to have `digest`."""
        if not self.holds(digest):
            self._write(self.object_path(digest.md5), lambda aside: clone(path, aside), digest)

    def put_bytes(self, data: bytes, suffix: str = "") -> FileDigest:
        """Store `data` and return its digest."""
        digest = hash_bytes(data)
        if not self.holds(digest, suffix):
            self._write(self.object_path(digest.md5 + suffix), lambda aside: aside.write_bytes(data), digest)
        return digest

    def holds(self, digest: FileDigest, suffix: str = "") -> bool:
        """Say whether the object is here and intact. A damaged one is dropped, unless this is only looking."""
        path = self.object_path(digest.md5 + suffix)
        if not path.is_file():
            return False
        if self.digests.of(path).sha256 == digest.sha256:
            return True
        if not self.looking:
            with storing(path):
                path.unlink(missing_ok=True)
        return False

    def holds_tree(self, tree: Tree) -> bool:
        """Say whether every file of `tree` is here and intact."""
        return all([self.holds(digest) for digest in tree.files.values()])

    def restore(self, tree: Tree, target: Path) -> None:
        """Make the folder `target` hold exactly `tree`, which the store holds. It appears whole or not at all."""
        with storing(target):
            aside = self.new_folder()
            for name, digest in tree.files.items():
                path = aside / name
                path.parent.mkdir(parents=True, exist_ok=True)
                clone(self.object_path(digest.md5), path)
                os.chmod(path, 0o644)
            self.publish(aside, target)
            for name, digest in tree.files.items():
                self.digests.learn(target / name, digest)

    def publish(self, folder: Path, target: Path) -> None:
        """Move a whole folder to `target`, in the place of what was there."""
        with storing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.discard(target)
            os.rename(folder, target)

    def discard(self, target: Path) -> None:
        """Remove a file or folder of the workspace at one stroke."""
        with storing(target):
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.is_dir():
                trash = self.new_folder()
                os.rename(target, trash / "gone")
                shutil.rmtree(trash, ignore_errors=True)

    def new_folder(self) -> Path:
        """Return a new empty folder in which something can be made ready. Raises StoreError."""
        folder = self.scratch / uuid.uuid4().hex
        with storing(folder):
            folder.mkdir(parents=True)
        return folder

    def object_path(self, md5: str) -> Path:
        return self.objects / md5[:2] / md5[2:]

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Rehash every object; yield those that are damaged, and why."""
        if not self.objects.is_dir():
            return
        for path in sorted(self.objects.glob("??/*")):
            if path.name.startswith("."):  # a killed build was writing it
                path.unlink()
                continue
            expected = path.parent.name + path.name.removesuffix(".dir")
            self.digests.known.pop(f"digest:{path}", None)
            found = self.digests.of(path).md5
            if found != expected:
                yield path, f"its md5 is {found}"

    def _write(self, target: Path, fill: Callable[[Path], object], digest: FileDigest) -> None:
        with storing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            try:
                fill(aside)
                with open(aside, "rb") as file:
                    os.fsync(file.fileno())
                os.chmod(aside, 0o444)
                os.replace(aside, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    aside.unlink(missing_ok=True)
                raise
        self.digests.learn(target, digest)


def clone(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks where the file system can (never its inode: an edit must not reach the store)."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
        except OSError:
            shutil.copyfileobj(reader, writer, 1 << 20)
