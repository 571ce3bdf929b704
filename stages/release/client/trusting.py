"""What of an update repository can be trusted now: its TUF metadata, refreshed and checked by python-tuf.

python-tuf checks signatures, thresholds, expiry, and rollback against the metadata that it keeps in a folder. That
folder may be damaged or lost; so what protects from rollback is kept once more, in sealed state of two copies: the
trusted root, the versions of all roles, and when the newest timestamp was signed. As TUF has it, the memory of a role
lapses when root gives its role other keys, or a stolen key could lock clients out for ever.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from tuf.api import exceptions
from tuf.api.metadata import Metadata as Document
from tuf.api.metadata import Root, TargetFile
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from pipelines.errors import ConfigError, UpdateError, VerificationError
from stages.release.client.clock import issued, judged, parsed
from stages.release.client.downloading import STAYS, Refusal, Source, read
from stages.release.client.twice import Twice
from stages.release.updates.expiry import text
from stages.release.updates.roles import CHANNELS, channel_of, channel_role

FIRST = "give the repository's first root metadata: --root FILE, or root= in Python; ask whoever publishes for it"
KEYS = ("timestamp", "snapshot")
CONFIG = UpdaterConfig(prefix_targets_with_hash=True)


class Metadata:
    """The repository's metadata of one moment, verified. notes: what the user should know of it."""

    def __init__(self, updater: Checked, source: Source, notes: list[str]) -> None:
        self.updater, self.source, self.notes = updater, source, notes

    def digest(self, path: str) -> str | None:
        """Return the sha256 of a target, None where there is none of this path. Raises as `refresh` does."""
        with explained(self.updater, self.source):
            found = self.found(path)
        if found is None:
            return None
        if not re.fullmatch(r"[0-9a-f]{64}", str(found.hashes.get("sha256"))):
            raise VerificationError(f"{self.source.where}: the metadata gives no sha256 for {path}", hint=STAYS)
        return str(found.hashes["sha256"])

    def target(self, path: str, limit: int) -> bytes | None:
        """Return a target of at most `limit` bytes, or None where there is none of this path."""
        with explained(self.updater, self.source):
            found = self.found(path)
            if found is None:
                return None
            if found.length > limit:
                raise VerificationError(f"{path} is to have {found.length} bytes; at most {limit} are read", hint=STAYS)
            with self.updater.fetcher.download_file(f"targets/{prefixed(found)}", found.length) as file:
                data = file.read()
                found.verify_length_and_hashes(data)
            return bytes(data)

    def found(self, path: str) -> TargetFile | None:
        """Return what the metadata says of a target. What belongs to a channel is the channel's own role's to say: the
        roles that python-tuf asks before it, the release key's above all, have no say in it."""
        found: TargetFile | None = self.updater.get_targetinfo(path)
        folder, _, rest = path.partition("/")
        if folder != CHANNELS:
            return found
        role = channel_role(rest.partition("/")[0])
        for name in self.updater.trusted.targets.targets:
            if name.partition("/")[0] == CHANNELS:
                raise usurped(self.source, "the targets metadata", name, "a channel's own role")
        own = self.updater.trusted[role].targets.get(path) if role in self.updater.trusted else None
        if found is not own:
            raise usurped(self.source, "another role", path, f"the role {role}")
        return found

    def channels(self) -> list[str]:
        """Return the channels that there are."""
        delegations = self.updater.trusted.targets.delegations
        roles = delegations.roles if delegations is not None else None
        return sorted(filter(None, map(channel_of, roles or ())))

    def devices(self, channel: str) -> list[str]:
        """Return the devices of a channel whose metadata was looked at."""
        role, before = channel_role(channel), f"channels/{channel}/"
        targets = self.updater.trusted[role].targets if role in self.updater.trusted else {}
        names = (path.removeprefix(before).removesuffix(".json") for path in targets if path.startswith(before))
        return sorted(names)


def usurped(source: Source, who: str, path: str, role: str) -> VerificationError:
    return VerificationError(
        f"{source.where}: {who} names {ascii(path)[1:-1]}, which {role} alone may name",
        hint="somebody may have another role's key; nothing of it is used. " + STAYS,
    )


def refresh(folder: Path, source: Source, memory: Twice, root: bytes | None, now: datetime) -> Metadata:
    """Return the repository's metadata as it is now. folder: where python-tuf keeps its own. root: trusted root
    metadata, needed the first time. now: what the machine's clock says.

    Raises VerificationError for metadata that is forged, older than what was seen, or does not belong together;
    UpdateError for what cannot be had or has expired; ConfigError without a root.
    """
    known = memory.read(has_root) or {}
    anchor = root or str(known.get("root") or "").encode() or oldest_root(folder)
    if not anchor:
        raise ConfigError(f"{folder.parent} trusts no repository yet", hint=FIRST)
    if root is not None and root.decode(errors="replace") != known.get("root"):
        known = {**known, "versions": without(known.get("versions"), "root")}  # whoever embeds a root may replace it
    try:
        return refreshed(folder, source, memory, known, anchor, now)
    except OSError:  # what lies in python-tuf's folder is in its way: the memory above protects without it
        remove(folder)
        return refreshed(folder, source, memory, known, anchor, now)
    except (UpdateError, VerificationError) as error:
        if is_new(anchor, known):  # what was trusted before stays so: the root may be another repository's
            remove(folder)
            error.hint = (
                f"the root that was given is not the one that was trusted here: is it this repository's? {error.hint}"
            )
        raise


def refreshed(
    folder: Path, source: Source, memory: Twice, known: dict[str, Any], anchor: bytes, now: datetime
) -> Metadata:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("tmp*"):  # python-tuf's, where it was killed
        path.unlink()
    time, note = judged(now, parsed(known.get("issued")))
    try:
        updater = Checked(folder, source, anchor, time)
    except exceptions.RepositoryError as cause:
        raise ConfigError(f"the trusted root metadata is none: {cause}", hint=FIRST) from cause
    try:
        with explained(updater, source, note):
            updater.refresh()
    except UpdateError:
        if not note or not lapsed(known, "timestamp", updater):
            raise
    else:
        check_versions(known, updater, source)
        return Metadata(updater, source, [note] if note else [])
    finally:
        remember(memory, known, anchor, updater)
    # other keys sign timestamps now: what the former ones said of the time does not count any more
    return refreshed(folder, source, memory, {**known, "issued": None}, anchor, now)


def check_versions(known: dict[str, Any], updater: Checked, source: Source) -> None:
    """Raise VerificationError where a role is older than it was once seen here."""
    seen = versions(updater)
    for role, before in dict(known.get("versions") or {}).items():
        keys = "timestamp" if role == "timestamp" else "snapshot"
        if role in seen and seen[role] < before and (role == "root" or not lapsed(known, keys, updater)):
            raise VerificationError(
                f"{source.where}: it offers version {seen[role]} of its {role} metadata, and had version {before} "
                "before: it was rolled back",
                hint="an old copy is being served, or somebody replays it; nothing of it is used. " + STAYS,
            )


def is_new(anchor: bytes, known: dict[str, Any]) -> bool:
    """Say whether this is another root than the one that was trusted here before."""
    return bool(known.get("root")) and anchor.decode(errors="replace") != known["root"]


def remember(memory: Twice, known: dict[str, Any], anchor: bytes, updater: Checked) -> None:
    """Keep what protects from rollback: the newest that was ever seen. An older root than that has no say in it, and no
    other root under which nothing here is signed."""
    before, seen = dict(known.get("versions") or {}), versions(updater)
    if seen["root"] < before.get("root", 0) or (is_new(anchor, known) and "timestamp" not in seen):
        return
    kept = {}
    for role in before | seen:
        keys = "timestamp" if role == "timestamp" else "snapshot"
        old = 0 if role != "root" and lapsed(known, keys, updater) else before.get(role, 0)
        kept[role] = max(old, seen.get(role, 0))
    bound = None if lapsed(known, "timestamp", updater) else parsed(known.get("issued"))
    if "timestamp" in seen:
        times = [time for time in (bound, issued(updater.trusted.timestamp)) if time is not None]
        bound = max(times, default=None)
    root = updater.trusted.root
    memory.write(
        {
            "root": anchor.decode(),
            "versions": {role: version for role, version in sorted(kept.items()) if version},
            "keys": {role: sorted(root.roles[role].keyids) for role in KEYS},
            "issued": text(bound) if bound else None,
        }
    )


def versions(updater: Checked) -> dict[str, int]:
    """Return {role: version} of the metadata that was verified; of targets and channels, what the snapshot says."""
    trusted = updater.trusted
    found = {role: trusted[role].version for role in ("root", "timestamp", "snapshot") if role in trusted}
    if "snapshot" in trusted:
        found |= {name.removesuffix(".json"): meta.version for name, meta in trusted.snapshot.meta.items()}
    return found


def lapsed(known: dict[str, Any], role: str, updater: Checked) -> bool:
    """Say whether root gives the role other keys than when its versions were remembered."""
    keys = dict(known.get("keys") or {}).get(role)
    return keys is not None and keys != sorted(updater.trusted.root.roles[role].keyids)


def without(value: Any, name: str) -> dict[str, Any]:
    return {key: each for key, each in dict(value or {}).items() if key != name}


def oldest_root(folder: Path) -> bytes:
    """Return the oldest root metadata that python-tuf has kept and that can be read, or b""."""
    found: dict[int, bytes] = {}
    for path in folder.glob("root_history/*.root.json"):
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            if (version := version_of_root(data)) is not None:
                found[version] = data
    return found[min(found)] if found else b""


def has_root(known: Mapping[str, Any]) -> bool:
    return version_of_root(str(known.get("root")).encode(errors="replace")) is not None


def version_of_root(data: bytes) -> int | None:
    """Return the version of root metadata that is signed by its own keys, None for anything else."""
    with contextlib.suppress(ValueError, exceptions.RepositoryError):
        document = Document[Any].from_bytes(data)
        if isinstance(document.signed, Root):
            document.signed.verify_delegate("root", document.signed_bytes, document.signatures)
            return document.signed.version
    return None


def prefixed(target: TargetFile) -> str:
    """Return where a target lies in a repository with consistent snapshots."""
    folder, slash, name = target.path.rpartition("/")
    return f"{folder}{slash}{next(iter(target.hashes.values()))}.{name}"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Fetcher(FetcherInterface):
    """python-tuf's way to the repository. last: the file that was asked for last."""

    def __init__(self, source: Source) -> None:
        self.source, self.last = source, ""

    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        self.last = url
        try:
            yield io.BytesIO(read(self.source, url, max_length))
        except Refusal as cause:
            raise exceptions.DownloadHTTPError(cause.message, cause.status) from cause

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self.download_file(url, CONFIG.targets_max_length) as file:
            yield file.read()


class Checked(Updater):
    """python-tuf's updater, with a clock of ours, and without a link to the newest root, which nothing here reads."""

    def __init__(self, folder: Path, source: Source, root: bytes, time: datetime) -> None:
        self.fetcher, self.time = Fetcher(source), time
        super().__init__(
            str(folder), "metadata/", fetcher=self.fetcher, target_base_url="targets/", config=CONFIG, bootstrap=root
        )
        self.trusted.reference_time = time

    @property
    def trusted(self) -> Any:
        """The metadata that was verified so far."""
        return self._trusted_set

    def _update_root_symlink(self) -> None:
        pass


@contextlib.contextmanager
def explained(updater: Checked, source: Source, note: str = "") -> Iterator[None]:
    """Turn python-tuf's refusals into ours, each with its own message."""
    try:
        yield
    except (UpdateError, VerificationError, OSError):
        raise
    except exceptions.DownloadHTTPError as cause:
        raise not_there(updater, source, cause) from cause
    except exceptions.ExpiredMetadataError as cause:
        raise expired(updater, source, cause, note) from cause
    except exceptions.UnsignedMetadataError as cause:
        raise refused(source, updater, "is not signed by enough of the keys that may sign it", cause) from cause
    except exceptions.LengthOrHashMismatchError as cause:
        raise refused(
            source,
            updater,
            "is not the file that the metadata before it names: parts of two releases are mixed, or it was changed",
            cause,
        ) from cause
    except exceptions.BadVersionNumberError as cause:
        raise refused(source, updater, told_version(str(cause)), cause) from cause
    except exceptions.RepositoryError as cause:
        missing = "New snapshot is missing" in str(cause)
        raise refused(
            source, updater, "leaves out metadata that was there: rolled back" if missing else "cannot be read", cause
        ) from cause
    except Exception as cause:  # whatever a server sends must not end in a traceback
        raise refused(source, updater, "cannot be read", cause) from cause


def told_version(said: str) -> str:
    if said.startswith("New ") or ".json version" in said:
        return "is older than what was seen before: it was rolled back"
    return "has another version than the metadata before it names: parts of two releases are mixed"


def refused(source: Source, updater: Checked, what: str, cause: Exception) -> VerificationError:
    said = "".join(letter if letter.isprintable() else " " for letter in str(cause))[:300]
    return VerificationError(
        f"{source.where}: {updater.fetcher.last} {what} ({said or type(cause).__name__})",
        hint="nothing of it is used. " + STAYS,
    )


def not_there(updater: Checked, source: Source, cause: exceptions.DownloadHTTPError) -> UpdateError:
    if updater.fetcher.last == "metadata/timestamp.json":
        return UpdateError(
            f"{source.where}: there is no update repository: {cause}", hint="check the address; " + STAYS
        )
    return UpdateError(
        f"{cause}, though the signed metadata names it: the repository is not whole",
        hint="whoever publishes can mend it: 'tapeout publish DIR'; " + STAYS,
    )


def expired(updater: Checked, source: Source, cause: Exception, note: str) -> UpdateError:
    found = re.search(r"(\S+) is expired", str(cause))
    role = found[1].removesuffix(".json") if found else "some"
    at = f" at {text(updater.trusted[role].expires)}" if role in updater.trusted else ""
    clock = note or f"this machine's clock says {text(updater.time)}"
    return UpdateError(
        f"{source.where}: its {role} metadata expired{at}; {clock}",
        hint="either the repository is frozen (an old copy is served, or nobody refreshes it: 'tapeout repository "
        "refresh'), or this machine's clock is wrong: set it. What is in place stays; the next run looks again",
    )
