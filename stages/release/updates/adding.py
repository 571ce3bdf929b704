"""Adding a release to an update repository: its archive, checked, becomes blobs and target files.

A blob is a file of a bundle under its sha256, so that what two releases share lies there once. Nothing is changed that
lies there already, and nothing names what was added until the metadata does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipelines.errors import ConfigError, VerificationError
from pipelines.files import write_file, write_whole
from stages.release.bundles.archive import Archive, open_archive
from stages.release.history.accepting import check_released
from stages.release.layout import Releases, sidecars
from stages.release.manifest import NAME, File, Manifest, object_of, parse, sha256_of
from stages.release.signing.dsse import IN_TOTO, open_envelope
from stages.release.signing.model_signature import check_model_signature
from stages.release.signing.statement import check_statement
from stages.release.updates.documents import BACK, Layout

if TYPE_CHECKING:
    from stages.release.history.state import Released
    from stages.release.signing.keys import PublicKey

SIDECARS = ("provenance.json", "model.sig")
MOST = 16 << 20  # bytes of a sidecar


@dataclass
class Added:
    """What was written: files and size (bytes) of blobs. folders: in which. targets: {path: target file}."""

    files: int = 0
    size: int = 0
    folders: set[Path] = field(default_factory=set)
    targets: dict[str, Any] = field(default_factory=dict)

    def place(self, path: Path, data: bytes) -> None:
        """Write a file that is named by its digest, unless it lies there whole."""
        if not is_there(path, len(data), hashlib.sha256(data).hexdigest(), check=True):
            write_file(path, data)
            self.folders.add(path.parent)

    def target(self, layout: Layout, path: str, data: bytes) -> None:
        """Write a target file, for metadata that will name it."""
        from tuf.api.metadata import TargetFile

        self.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        self.place(layout.target(path, self.targets[path].hashes["sha256"]), data)


def bundle_path(device: str, version: str, name: str = NAME) -> str:
    return f"bundles/{device}/{version}/{name}"


def target_paths(device: str, version: str) -> tuple[str, ...]:
    """Return the paths of a release's target files."""
    return tuple(bundle_path(device, version, name) for name in (NAME, *SIDECARS))


def add_release(
    layout: Layout,
    releases: Releases,
    release: Released,
    trusted: Sequence[PublicKey],
    added: Added,
    check: bool = False,
    only_blobs: bool = False,
) -> None:
    """Check a release as its promotion did, and add what the repository lacks of it.

    check: also hash the blobs that lie there already. only_blobs: the target files are named already. Raises
    VerificationError, GateError; ConfigError where there is no archive.
    """
    path = releases.archive(release.version, release.device)
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing, and the repository lacks {release.title}",
            hint="get it, with the two files beside it, from whoever created the release; its sha256 is "
            f"{release.archive}",
        )
    check_released(releases, release, trusted)
    with open_archive(path) as archive:  # all that is written comes from this one, whatever has been put there since
        manifest = archive.manifest
        if manifest.digest != release.bundle:
            raise VerificationError(
                f"{path}: holds the bundle {manifest.digest}, and the history says {release.bundle}: it was replaced "
                "after it was verified",
                hint=f"get the archive of {release.title} from whoever created the release",
            )
        signed = {} if only_blobs else signed_sidecars(path, manifest, trusted)
        for file in manifest.files:
            blob = layout.blob(file.sha256)
            if not is_there(blob, file.size, file.sha256, check):
                write_whole(blob, partial(pour, archive, file))
                added.files, added.size = added.files + 1, added.size + file.size
                added.folders.add(blob.parent)
    if only_blobs:
        return
    added.target(layout, bundle_path(release.device, release.version), manifest.data)
    for name, data in signed.items():
        added.target(layout, bundle_path(release.device, release.version, name), data)


def signed_sidecars(path: Path, manifest: Manifest, trusted: Sequence[PublicKey]) -> dict[str, bytes]:
    """Return {name: bytes} of what lies beside an archive; these very bytes are checked. Raises VerificationError."""
    beside = sidecars(path)
    where = str(beside.provenance)
    found = {"provenance.json": read_sidecar(beside.provenance)}
    opened = open_envelope(found["provenance.json"], IN_TOTO, trusted, where)
    check_statement(object_of(opened.payload, where), manifest, where)
    if beside.signature.is_file():  # an Ed25519 key makes none
        found["model.sig"] = read_sidecar(beside.signature)
        check_model_signature(found["model.sig"], manifest, trusted, str(beside.signature))
    return found


def pour(archive: Archive, file: File, out: IO[bytes]) -> None:
    """Write a file of an archive; what is not as its manifest says raises VerificationError before it has its name."""
    for piece in archive.chunks(file):
        out.write(piece)


def read_sidecar(path: Path) -> bytes:
    """Return a file beside an archive; it need not be the one that was verified before. Raises VerificationError."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST + 1)
    except OSError as cause:
        raise VerificationError(
            f"{path} cannot be read: {cause.strerror or cause}", hint="'tapeout sign' writes it, with the release key"
        ) from cause
    if len(data) > MOST:
        raise VerificationError(f"{path}: more than {MOST} bytes", hint="'tapeout sign' writes it anew")
    return data


def is_there(path: Path, size: int, sha256: str, check: bool = False) -> bool:
    """Say whether a file lies there whole: by its size, and with `check` by its bytes."""
    try:
        whole = path.is_file() and not path.is_symlink() and path.stat().st_size == size
        return whole and (not check or sha256_of(path) == sha256)
    except OSError:
        return False


def lacking(layout: Layout, files: Iterable[File], check: bool = False) -> Iterator[File]:
    """Yield the files of a bundle whose blobs are not there."""
    for file in files:
        if not is_there(layout.blob(file.sha256), file.size, file.sha256, check):
            yield file


def read_target(layout: Layout, path: str, target: Any) -> bytes:
    """Return a target file's bytes. Raises VerificationError where they are not those that were signed."""
    from tuf.api.exceptions import LengthOrHashMismatchError

    file = layout.target(path, target.hashes.get("sha256", ""))
    try:
        with file.open("rb") as opened:
            data = opened.read(target.length + 1)
        target.verify_length_and_hashes(data)
    except OSError as cause:
        raise VerificationError(f"{file} cannot be read: {cause.strerror or cause}", hint=BACK) from cause
    except LengthOrHashMismatchError as cause:
        raise VerificationError(f"{file}: not what was signed: {cause}", hint=BACK) from cause
    return data


def read_manifest(layout: Layout, path: str, target: Any) -> Manifest:
    """Return the manifest that a target is. Raises VerificationError."""
    return parse(read_target(layout, path, target), path)
