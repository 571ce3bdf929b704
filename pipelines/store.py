"""The content-addressed store, in the format of DVC's cache: files/md5/<2>/<30>, folders as .dir objects.

DVC trusts any read-only object; this store does not: an object whose `stat` changed since it was last seen is hashed
again, and dropped when it is not what it should be.

What a power cut may leave. An object is on the disk before it has its name, so that a name with other content is damage
like any other, and is found by its digest. Nothing else has to reach the disk in any order: a record that outlives its
objects finds them missing and counts for nothing, objects without a record are found again when the node has run, and a
record or a memory cut short breaks its seal. So no folder is synced; what a power cut takes is the last seconds' work.
Files in the workspace are copies of objects and are not synced: one that lost data has another size (ext4, xfs, btrfs
and apfs write data before the size that covers it), and is put right from its object.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipelines.digests import CHUNK, Digests, FileDigest, hash_bytes
from pipelines.errors import StageError, StoreError
from pipelines.files import storing, write_whole
from pipelines.tree import Tree

WAIT = "a stage returns when its threads and child processes are done with its output: wait for them in it"
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
        """Store the files of `folder`, whose contents are `tree`. Raises StoreError, and StageError as `put_file`."""
        for name, digest in tree.files.items():
            self.put_file(f"{folder}/{name}", digest, name)
        self.put_listing(tree)

    def put_file(self, path: Path | str, digest: FileDigest, name: str) -> None:
        """Store one file, which had `digest`. Raises StageError, which calls it `name`, where the copy has another."""
        if self.holds(digest):
            return
        target = self.object_path(digest.md5)
        try:
            source = open(path, "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise StageError(
                f"{name} was taken away when the stage had returned: {error.strerror}", hint=WAIT
            ) from error

        def fill(file: IO[bytes]) -> None:
            clone(source, file)
            if sha256_of(file) != digest.sha256:
                raise StageError(f"{name} was still being written when the stage had returned", hint=WAIT)

        with source:
            write_whole(target, fill, mode=0o444)
        self.digests.learn(target, digest)

    def put_listing(self, tree: Tree) -> None:
        """Store DVC's listing of a folder."""
        self.put_bytes(tree.listing, tree.listing_digest, suffix=".dir")

    def put_bytes(self, data: bytes, digest: FileDigest | None = None, suffix: str = "") -> FileDigest:
        """Store `data` and return its digest."""
        digest = digest or hash_bytes(data)
        if not self.holds(digest, suffix):
            target = self.object_path(digest.md5 + suffix)
            write_whole(target, lambda file: file.write(data), mode=0o444)
            self.digests.learn(target, digest)
        return digest

    def holds(self, digest: FileDigest, suffix: str = "") -> bool:
        """Say whether the object is here and intact. A damaged one is dropped, unless this is only looking."""
        path = f"{self.objects}/{digest.md5[:2]}/{digest.md5[2:]}{suffix}"
        if not os.path.isfile(path):
            return False
        if self.digests.of(path).sha256 == digest.sha256:
            return True
        if not self.looking:
            with storing(path), contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return False

    def holds_tree(self, tree: Tree) -> bool:
        """Say whether every file of `tree` is here and intact."""
        return all([self.holds(digest) for digest in tree.files.values()])

    def restore(self, tree: Tree, target: Path) -> None:
        """Make the folder `target` hold exactly `tree`, which the store holds. It appears whole or not at all."""
        aside = self.new_folder()
        try:
            for name, digest in tree.files.items():
                path = aside / name
                with storing(target / name):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open(self.object_path(digest.md5), "rb") as source, open(path, "wb") as file:
                        clone(source, file)
                    self.digests.learn(path, digest)
            self.publish(aside, target, tree)
        except BaseException:  # a full disk has no room for what nobody will use
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def publish(self, folder: Path, target: Path, tree: Tree) -> None:
        """Move a whole folder, which held `tree` when it was hashed, to `target`, in the place of what was there."""
        with storing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.discard(target)
            os.rename(folder, target)
            for name in tree.files:
                self.digests.moved(f"{folder}/{name}", f"{target}/{name}")

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
            try:
                os.mkdir(folder)
            except FileNotFoundError:
                folder.mkdir(parents=True)
        return folder

    def object_path(self, md5: str) -> Path:
        return self.objects / md5[:2] / md5[2:]

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Rehash every object; yield those that are damaged, and why."""
        for path in sorted(self.objects.glob("??/[!.]*")):  # a dot: not whole, and never taken for an object
            expected = path.parent.name + path.name.removesuffix(".dir")
            self.digests.forget(path)
            try:
                found = self.digests.of(path).md5
            except StoreError as error:
                yield path, error.message
                continue
            if found != expected:
                yield path, f"its md5 is {found}"


def clone(source: IO[bytes], target: IO[bytes]) -> None:
    """Copy a file, sharing its blocks where the file system can (never its inode: an edit must not reach the store)."""
    try:
        fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
    except OSError:
        shutil.copyfileobj(source, target, CHUNK)


def sha256_of(file: IO[bytes]) -> str:
    """Return the sha256 of what has been written to an open file, as it can be read back."""
    file.flush()
    sha256, place = hashlib.sha256(), 0
    while chunk := os.pread(file.fileno(), CHUNK, place):
        sha256.update(chunk)
        place += len(chunk)
    return sha256.hexdigest()
