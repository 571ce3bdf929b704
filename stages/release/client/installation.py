"""What a client has on its device: whole bundles, which of them is in place, and what it remembers.

    versions/DIGEST/     bundles; each was whole and verified before it came here
    current              leads to the one in place: a symbolic link, or its digest in a file where there are no links
    partial/             what an update has fetched so far
    metadata/            python-tuf's copy of the repository's metadata
    state.json, state.copy.json    the installation's id, which version was confirmed, which are bad, and why
    trust.json, trust.copy.json    what protects from rollback
    lock                 held while a client changes anything

`current` is changed by one rename, after all else has been written: whoever is killed leaves the old version in place,
or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, StoreError, TapeoutError, UpdateError, VerificationError
from pipelines.files import write_file
from stages.release.client.twice import Twice
from stages.release.manifest import NAME, File, Manifest, check_paths, object_of, sha256_of

DIGEST = re.compile(r"[0-9a-f]{64}")
ASIDE = re.compile(r"\.(.+\.)?[0-9a-f]{32}")  # what a killed process was writing beside its place
ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
CANNOT = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES)  # the system has no such thing for this file
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STAYS = "what is in place stays, and so does what was fetched: run it again"


class Installation:
    """A client's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions, self.partial, self.metadata = folder / "versions", folder / "partial", folder / "metadata"
        self.pointer = folder / "current"
        self.state, self.trust = Twice(folder, "state", sound_state), Twice(folder, "trust", sound_trust)

    def current(self) -> str | None:
        """Return the digest of the bundle in place, None where there is none.

        Where the pointer was lost or leads nowhere: the last bundle that was known to be good, or any that is whole.
        """
        pointed, state = self.pointed(), self.remembered()
        others = (state.get("current"), state.get("confirmed"), state.get("fallback"), *self.present())
        bad = state.get("bad") or {}
        for digest in dict.fromkeys((pointed, *(each for each in others if each not in bad))):
            if isinstance(digest, str) and self.manifest(digest) is not None:
                return digest
        return None

    def pointed(self) -> str | None:
        """Return the digest that the pointer says, whatever lies there."""
        try:
            name = os.path.basename(os.readlink(self.pointer))
        except OSError:
            try:
                name = self.pointer.read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                return None
        return name if DIGEST.fullmatch(name) else None

    def present(self) -> list[str]:
        """Return the digests of the versions whose folders are there, the newest first."""
        with contextlib.suppress(OSError):
            paths = [path for path in self.versions.iterdir() if DIGEST.fullmatch(path.name)]
            return [path.name for path in sorted(paths, key=lambda path: -path.stat().st_mtime)]
        return []

    def path(self, digest: str) -> Path:
        return self.versions / digest

    def manifest(self, digest: str) -> Manifest | None:
        """Return the manifest of a version that is here with all its files in their sizes; None for any other.

        Contents are not hashed: see `damage`.
        """
        with contextlib.suppress(TapeoutError, OSError):
            manifest = self.read(digest)
            if all(self.has(digest, file) for file in manifest.files):
                return manifest
        return None

    def read(self, digest: str) -> Manifest:
        """Return the manifest of a version. It was held against the schema before the version came here, and has not
        changed since: its digest is the folder's name. Raises VerificationError."""
        path = self.path(digest) / NAME
        try:
            data = path.read_bytes()
            manifest = Manifest(data, object_of(data, str(path)))
            check_paths([file.path for file in manifest.files], str(path))
        except (OSError, LookupError, TypeError, ValueError) as cause:
            raise VerificationError(f"{path}: cannot be read: {cause}") from cause
        if manifest.digest != digest:
            raise VerificationError(f"{path}: it has changed since it came here")
        return manifest

    def has(self, digest: str, file: File) -> bool:
        return os.stat(self.path(digest) / file.path).st_size == file.size

    def damage(self, digest: str | None) -> list[str]:
        """Hash a version; return the paths that are missing or not what its manifest says."""
        if digest is None:
            return []
        try:
            manifest = self.read(digest)
        except VerificationError:
            return [NAME]
        return [file.path for file in manifest.files if not holds(self.path(digest) / file.path, file)]

    def remembered(self) -> dict[str, Any]:
        """Return the state: id, confirmed, fallback, current (as the pointer has it, or will), bad: {digest: why}."""
        return self.state.read() or {}

    def remember(self, **changes: Any) -> dict[str, Any]:
        """Change the state. Raises StoreError."""
        before = self.remembered()
        state = {**before, **changes}
        if state != before:
            self.state.write(state)
        return state

    def identity(self, given: str | None) -> str:
        """Return the installation's anonymous id: the one given, the one kept, or a new random one, from then on kept.

        Raises ConfigError for one that is given and is none.
        """
        if given is not None and not ID.fullmatch(given):
            raise ConfigError(f"--id {given}: 1 to 128 letters, digits, '.', '_' or '-' are expected")
        kept = self.remembered().get("id")
        found = given or kept or uuid.uuid4().hex
        if found != kept:
            self.remember(id=found)
        return str(found)

    def fallback(self, revoked: frozenset[str] = frozenset()) -> str | None:
        """Return the last good version beside the one in place, if it is here, not bad and not revoked."""
        state, current = self.remembered(), self.current()
        for digest in [state.get("fallback")] if "current" in state else self.present():  # else the state was lost
            usable = digest != current and digest not in (state.get("bad") or {}) and digest not in revoked
            if isinstance(digest, str) and usable and self.manifest(digest) is not None:
                return digest
        return None

    def switch(self, digest: str, left: str | None) -> None:
        """Put a version in place that is whole in versions/. left: the version to go back to.

        Raises StoreError and OSError; the version before is then in place.
        """
        self.remember(fallback=left, current=digest)
        aside = self.folder / f".current.{uuid.uuid4().hex}"
        if self.pointer.is_dir() and not self.pointer.is_symlink():
            shutil.rmtree(self.pointer)  # nothing of ours
        try:
            os.symlink(Path(self.versions.name, digest), aside, target_is_directory=True)
        except (OSError, NotImplementedError):
            write_file(self.pointer, f"{digest}\n".encode())
        else:
            os.replace(aside, self.pointer)
        sync(self.folder)

    def adopt(self, folder: Path, digest: str) -> Path:
        """Move a whole bundle from partial/ to versions/."""
        target = self.path(digest)
        self.versions.mkdir(exist_ok=True)
        os.rename(folder, target)
        sync(self.versions)
        return target

    def heal(self) -> None:
        """Remove what killed clients have left beside places, and have `current` lead to a version that is here."""
        for path in self.folder.glob(".*"):
            if ASIDE.fullmatch(path.name) and (path.is_symlink() or not path.is_dir()):
                path.unlink(missing_ok=True)
        current = self.current()
        if current is not None and self.pointed() != current:
            self.switch(current, self.fallback())

    def sweep(self) -> None:
        """Remove the versions that are neither in place nor the last good one."""
        current, state = self.current(), self.remembered()
        if current is not None and "current" in state:  # else whatever is here may be all there is
            self.discard(*(digest for digest in self.present() if digest not in (current, state.get("fallback"))))

    def discard(self, *digests: str) -> None:
        for digest in digests:
            shutil.rmtree(self.path(digest), ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let this process alone change the folder. Raises UpdateError where another one has it, or where the folder
        cannot be written."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / "lock", "a+b")  # noqa: SIM115 (closed below)
        with lock:
            if not taken(lock.fileno()):
                raise UpdateError(
                    f"{self.folder}: another client is at work there", hint="wait until it is done; each needs a folder"
                )
            with writing(self.folder):
                yield


def sound_state(value: Mapping[str, Any]) -> bool:
    """Say whether a state is one that `remember` may have written."""
    words = [(value.get(name), DIGEST) for name in ("current", "confirmed", "fallback")] + [(value.get("id"), ID)]
    plain = all(word is None or (isinstance(word, str) and form.fullmatch(word)) for word, form in words)
    return plain and isinstance(value.get("bad") or {}, dict)


def sound_trust(value: Mapping[str, Any]) -> bool:
    """Say whether this is what `trusting` may have written to protect from rollback. What its root says is for
    `trusting` to see, which imports more."""
    versions, keys = value.get("versions") or {}, value.get("keys") or {}
    return (
        isinstance(value.get("root"), str | None)
        and isinstance(versions, dict)
        and all(type(each) is int for each in versions.values())
        and isinstance(keys, dict)
        and all(isinstance(each, list) for each in keys.values())
        and isinstance(value.get("issued"), str | None)
    )


def taken(descriptor: int) -> bool:
    """Lock a file until it is closed; say whether nobody else had."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses into UpdateError."""
    try:
        yield
    except (OSError, StoreError) as cause:
        error = cause if isinstance(cause, OSError) else cause.__cause__
        number = error.errno if isinstance(error, OSError) else None
        said = (error.strerror if isinstance(error, OSError) else "") or str(cause)
        if number in FULL:
            raise UpdateError(f"{folder}: the disk is full ({said})", hint=f"free some space; {STAYS}") from cause
        name = error.filename if isinstance(error, OSError) and error.filename else folder
        raise UpdateError(f"{name}: cannot be read or written: {said}", hint=STAYS) from cause


def holds(path: Path, file: File) -> bool:
    """Hash a file, and say whether it is the one that the manifest means."""
    try:
        return (
            not path.is_symlink()
            and path.is_file()
            and path.stat().st_size == file.size
            and sha256_of(path) == file.sha256
        )
    except OSError:
        return False


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk. Raises OSError where the disk fails."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no folders
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
    finally:
        os.close(descriptor)


def kept_bad(state: Mapping[str, Any], named: set[str]) -> dict[str, str]:
    """Return the bad versions that the channel names still; the others are forgotten."""
    return {digest: why for digest, why in dict(state.get("bad") or {}).items() if digest in named}
