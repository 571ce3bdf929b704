"""The signed history of releases: append-only, a DSSE envelope a line, each line naming the sha256 of the one before.

Whoever trusts the keys can tell that no line was changed, left out, put in or moved. That the *end* was cut off cannot
be told from what is left: keep the head (SEQUENCE:SHA256, which `tapeout release status` prints), and hold a later
history against it with --expect.

A signer vouches for all that lies before: every writer verifies it first. So a key can be replaced: trust the new one
too, sign the next entry with it, and then take the old one away; what that has signed before stays good, what it signs
from then on is refused. Keep the old public key in releases/keys/former: it is trusted with nothing new, and the old
entries' signatures are checked against it. An entry of a key that is in neither place is held by the chain alone, the
sha256 that a later trusted entry names; `Log.unchecked` counts it, and status and history say so.

Writers come one at a time: the lock is held while the state is read, the decision is made, and its entry is written and
on the disk. A line that a killed writer has left unfinished was never part of the history; the next writer drops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, VerificationError
from pipelines.files import storing
from stages.release.history.entry import FIRST, PAYLOAD_TYPE, Entry, parse
from stages.release.manifest import object_of
from stages.release.signing.dsse import Opened, open_envelope, read_envelope, sign_envelope
from stages.release.signing.keys import PublicKey, SigningKey, load_public_key

RESTORE = "take the history from where it is whole (git, the update repository's operator), and find out who changed it"
HEAD = re.compile(r"(\d+):([0-9a-f]{64})")
FORMER = Path("keys", "former")  # beside the history: public keys that were trusted
APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


@dataclass(frozen=True)
class Log:
    """A history as it was read, all of it verified. torn: bytes at its end that a killed writer has left, never a whole
    entry. size: bytes before them. ended: whether the last line has its newline. unchecked: sequences of entries whose
    signature nobody could check, for want of the key."""

    entries: tuple[Entry, ...] = ()
    torn: int = 0
    size: int = 0
    ended: bool = True
    unchecked: tuple[int, ...] = ()

    @property
    def head(self) -> str:
        """SEQUENCE:SHA256 of the last entry; "" where there is none."""
        return self.entries[-1].head if self.entries else ""


@dataclass
class Writing:
    """The history, while this process alone may append to it. keys: those that are trusted."""

    path: Path
    log: Log
    keys: Sequence[PublicKey]

    def append(self, key: SigningKey, who: str, action: str, **values: Any) -> Entry:
        """Sign an entry, write it, and return it once it is on the disk.

        who: signs, for readers; empty: the key's name. values: the other members of Entry. Raises ConfigError for a key
        that is not trusted, StoreError.
        """
        self.check_key(key)
        number, previous = self.next
        entry = Entry(
            sequence=number,
            previous=previous,
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            who={"keyid": key.public.keyid, "name": who or key.public.name},
            action=action,
            **values,
        )
        line = sign_envelope(entry.payload(), PAYLOAD_TYPE, [key])
        write_line(self.path, self.log, line)
        entry = replace(entry, digest=hashlib.sha256(line).hexdigest())
        self.log = Log((*self.log.entries, entry), 0, self.path.stat().st_size, True, self.log.unchecked)
        return entry

    def check_key(self, key: SigningKey) -> None:
        """Raise ConfigError for a key that readers would not trust."""
        if key.public.keyid not in {each.keyid for each in self.keys}:
            raise untrusted(key, self.path)

    @property
    def next(self) -> tuple[int, str]:
        """The sequence and `previous` of the next entry."""
        last = self.log.entries[-1] if self.log.entries else None
        return (last.sequence + 1, last.digest) if last else (1, FIRST)


@dataclass(frozen=True)
class History:
    """A history's file; it need not exist."""

    path: Path

    def entries(self, keys: Sequence[PublicKey]) -> list[Entry]:
        """Return all entries, verified. Raises VerificationError, which names the line."""
        return list(self.read(keys).entries)

    def read(self, keys: Sequence[PublicKey]) -> Log:
        """Return the history, verified. Raises VerificationError, which names the line; ConfigError."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return Log()
        except OSError as cause:
            raise ConfigError(f"{self.path} cannot be read: {cause.strerror or cause}") from cause
        former = sorted(self.path.parent.joinpath(FORMER).glob("*.pub"))
        return read(data, keys, str(self.path), [load_public_key(path) for path in former])

    @contextlib.contextmanager
    def writing(self, keys: Sequence[PublicKey], waiting: Callable[[], None] = lambda: None) -> Iterator[Writing]:
        """Give the history to this process alone. waiting: is called first where another process has it.

        Raises VerificationError, StoreError.
        """
        folder = self.path.parent
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # git replaces the file, not the folder
        try:
            with storing(folder):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield Writing(self.path, self.read(keys), keys)
        finally:
            os.close(lock)


def read(data: bytes, keys: Sequence[PublicKey], where: str, former: Sequence[PublicKey] = ()) -> Log:
    """Return the history in the bytes. former: keys that were trusted. Raises VerificationError; it names the line."""
    lines = data.split(b"\n")
    rest = lines.pop()  # after the last newline: nothing, or what was not finished
    torn = len(rest) if rest and not is_whole(rest) else 0
    if rest and not torn:
        lines.append(rest)  # an editor took the newline
    entries: list[Entry] = []
    unchecked: list[int] = []
    previous, doubt = FIRST, None
    for number, line in enumerate(lines, 1):
        place = f"{where}, line {number}"
        try:
            opened, unknown = open_envelope(line, PAYLOAD_TYPE, keys, place), None
        except VerificationError as cause:
            opened, unknown = by_former_key(line, keys, place, cause), cause
            if not has_signed(former, opened, line, place):
                unchecked.append(number)
        entries.append(entry_in(opened, line, number, previous, place))
        previous = entries[-1].digest
        doubt = (doubt or unknown) if unknown else None  # a trusted key's entry vouches for those before it
    if doubt:
        raise VerificationError(doubt.message, hint=f"{doubt.hint}; or {RESTORE}") from doubt
    return Log(tuple(entries), torn, len(data) - torn, torn > 0 or not rest, tuple(unchecked))


def by_former_key(line: bytes, keys: Sequence[PublicKey], where: str, cause: VerificationError) -> Opened:
    """Return what a line holds that no trusted key has signed, for a later one to vouch for. Raises `cause` where that
    is not what is wrong with it."""
    envelope = read_envelope(line, where)
    if envelope.payload_type != PAYLOAD_TYPE or any(key.keyid in envelope.signatures for key in keys):
        raise VerificationError(cause.message, hint=f"{cause.hint}; or {RESTORE}") from cause
    return Opened(envelope.payload, tuple(envelope.signatures))


def has_signed(former: Sequence[PublicKey], opened: Opened, line: bytes, where: str) -> bool:
    """Say whether a key that was trusted has signed the line; False where none of its signers is known.

    Raises VerificationError for a signature that is not such a key's.
    """
    known = [key for key in former if key.keyid in opened.keyids]
    return bool(known) and bool(open_envelope(line, PAYLOAD_TYPE, known, where).keyids)


def entry_in(opened: Opened, line: bytes, number: int, previous: str, where: str) -> Entry:
    """Return the entry in a line, which must have this number, and follow `previous`. Raises VerificationError."""
    entry = parse(opened.payload, where)
    if entry.sequence != number:
        why = "one before it was removed" if entry.sequence > number else "it stands twice, or lines were moved"
        raise VerificationError(f"{where}: holds entry {entry.sequence}, expected {number}: {why}", hint=RESTORE)
    if entry.previous != previous:
        before = f"line {number - 1}" if number > 1 else "the beginning"
        raise VerificationError(
            f"{where}: follows the sha256 {entry.previous[:16]}..., and {before} is {previous[:16]}...: {before} was "
            "changed or replaced after this entry was signed, or this one belongs to another history",
            hint=RESTORE,
        )
    if entry.who["keyid"] not in opened.keyids:
        raise VerificationError(
            f"{where}: says that {entry.who['keyid'][:16]} wrote it, and is signed by {opened.keyids[0][:16]}",
            hint=RESTORE,
        )
    return replace(entry, digest=hashlib.sha256(line).hexdigest())


def is_whole(line: bytes) -> bool:
    """Say whether a line that has no newline is JSON all the same: then only the newline is missing."""
    try:
        object_of(line, "")
    except VerificationError:
        return False
    return True


def write_line(path: Path, log: Log, line: bytes) -> None:
    """Put a line at the end of the history, whole or not at all, and on the disk. Raises StoreError."""
    with storing(path):
        new = not path.exists()
        file = os.open(path, APPENDING, 0o644)
        try:
            os.ftruncate(file, log.size)  # drops what a killed writer left
            data = (b"" if log.ended else b"\n") + line + b"\n"
            try:
                while data:
                    data = data[os.write(file, data) :]
                os.fsync(file)
            except BaseException:
                os.ftruncate(file, log.size)
                raise
        finally:
            os.close(file)
        if new:
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_expected(log: Log, expected: str, where: str) -> None:
    """Raise VerificationError unless the history holds the entry that SEQUENCE:SHA256 names, as its head or before it.

    Raises ConfigError for a text that names none.
    """
    found = HEAD.fullmatch(expected)
    if not found:
        raise ConfigError(f"--expect {expected}: it takes SEQUENCE:SHA256", hint="as 'tapeout release status' says it")
    number, digest = int(found[1]), found[2]
    if not 0 < number <= len(log.entries):
        raise VerificationError(
            f"{where}: has {len(log.entries)} entries, and is expected to have {number} or more: its end was cut off",
            hint=RESTORE,
        )
    if log.entries[number - 1].digest != digest:
        raise VerificationError(
            f"{where}: entry {number} is {log.entries[number - 1].digest[:16]}..., expected {digest[:16]}...: it is "
            "another history",
            hint=RESTORE,
        )


def untrusted(key: SigningKey, path: Path) -> ConfigError:
    name = key.public.name
    return ConfigError(
        f"{name}: readers of {path} would not trust this key",
        hint=f"put its public half into {path.parent / 'keys'}: cp {name}.pub {path.parent / 'keys'}/",
    )
