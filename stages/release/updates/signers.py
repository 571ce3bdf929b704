"""Whose entries of the history a publication takes: those of keys that the update repository knows already.

releases/keys/ lies in git, beside the history: who can write to git could add a key there, and an entry that it has
signed; the next honest publication would sign the outcome. The repository's own metadata is signed, and knows better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError, VerificationError
from stages.release.history.entry import FIRST, PAYLOAD_TYPE, parse
from stages.release.layout import Releases
from stages.release.signing.dsse import open_envelope, read_envelope
from stages.release.signing.keys import PublicKey, load_public_key, public_key
from stages.release.updates.publish_plan import HISTORY
from stages.release.updates.repository import Repository
from stages.release.updates.roles import NAMED, ONLINE, keys_of

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from stages.release.history.state import State
    from stages.release.signing.keys import SigningKey


def check_signers(
    repository: Repository,
    releases: Releases,
    state: State,
    keys: Sequence[SigningKey],
    accepted: Sequence[PublicKey],
    given_up: Sequence[str] = (),
) -> None:
    """Raise VerificationError unless each entry that is newer than the last publication was signed by a key of root,
    of targets or of a channel, as the repository's signed metadata has them, or by one that is accepted.

    state: what the history came to. keys: before the first publication, they take the place of the repository's.
    given_up: roles that were published from another history.
    """
    marks = marked(repository)
    known = [*accepted, *(repository_keys(repository) if marks else [key.public for key in keys])]
    # a mark that this history holds, as `strangers` has seen; what it was given up for begins anew
    last, previous = max((mark for role, mark in marks.items() if role not in given_up), default=(0, FIRST))
    if last >= state.sequence:
        return
    for number, line in enumerate(lines_of(releases.history, state.sequence)[last:], last + 1):
        where = f"{releases.history}, line {number}"
        entry = parse(signed_by(line, known, where, releases), where)
        if (entry.sequence, entry.previous) != (number, previous):
            raise changed(releases.history)
        previous = hashlib.sha256(line).hexdigest()
    if previous != state.digest:
        raise changed(releases.history)


def marked(repository: Repository) -> dict[str, tuple[int, str]]:
    """Return {role: sequence and sha256 of the entry that it was published from}, of those that were."""
    found = {}
    for role in repository.roles:
        mark = repository.metadata_of(role).signed.unrecognized_fields.get(HISTORY)
        if mark is not None:
            found[role] = (mark["sequence"], mark["sha256"])
    return found


def repository_keys(repository: Repository) -> list[PublicKey]:
    """Return the keys of root, targets and channels: of who decides, so not the online key's."""
    found: dict[str, PublicKey] = {}
    for role in (role for role in repository.roles if role not in ONLINE):
        delegator = repository.delegator(role)
        known = keys_of(delegator)
        for keyid in delegator.get_delegated_role(role).keyids:
            found.update((each.keyid, each) for each in ours(known[keyid]))
    return list(found.values())


def ours(key: Key) -> Iterator[PublicKey]:
    """Yield a key of metadata as ours, with the id that follows from it; nothing for a kind that signs no entries."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    name, text = key.unrecognized_fields.get(NAMED), key.keyval.get("public")
    try:
        public = (
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
            if key.keytype == "ed25519"
            else load_pem_public_key(text.encode())
        )
        yield public_key(public, name if isinstance(name, str) else key.keyid[:16], Path("metadata"))
    except (AttributeError, TypeError, ValueError, UnsupportedAlgorithm, ConfigError):
        return


def lines_of(path: Path, number: int) -> list[bytes]:
    """Return the first lines of the history. Raises VerificationError where there are not as many."""
    try:
        lines = path.read_bytes().split(b"\n")[:number]
    except OSError as cause:
        raise ConfigError(f"{path} cannot be read: {cause.strerror or cause}") from cause
    if len(lines) < number:
        raise changed(path)
    return lines


def signed_by(line: bytes, known: Sequence[PublicKey], where: str, releases: Releases) -> bytes:
    """Return what an entry's line holds, which a known key has signed. Raises VerificationError."""
    envelope = read_envelope(line, where)
    if any(key.keyid in envelope.signatures for key in known):
        return open_envelope(line, PAYLOAD_TYPE, known, where).payload
    entry, keyid = parse(envelope.payload, where), next(iter(envelope.signatures))
    file = file_of(keyid, releases)
    raise VerificationError(
        f"{where}: entry {entry.sequence} ({entry.action} {entry.version}) is signed by the key {keyid}"
        f"{f' ({file})' if file else ''}, which this update repository does not know, and nothing is published from "
        f"it; known are {', '.join(key.title for key in known) or 'none'}",
        hint=f"find out whose key it is, from its holder and not from git. To accept it: --trusted "
        f'{file or releases.project.relative(releases.keys / "NAME.pub")}; docs/runbook.md, "A new release '
        'engineer". Otherwise somebody has written to the history',
    )


def file_of(keyid: str, releases: Releases) -> str:
    """Return the file in releases/keys/ that holds a key, or ""."""
    for path in sorted(releases.keys.rglob("*.pub")):
        try:
            if load_public_key(path).keyid == keyid:
                return releases.project.relative(path)
        except ConfigError:  # it is not that one; whoever trusts the folder is told what is wrong with it
            continue
    return ""


def changed(path: Path) -> VerificationError:
    return VerificationError(f"{path}: it was changed while it was read", hint="run the same again")
