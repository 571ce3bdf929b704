"""The roles of an update repository, and who may sign for each (TUF, https://theupdateframework.github.io/specification).

root        says whose keys the other roles have; kept offline, several people
targets     says which bundles there are: the release key
channel-NAME  says which of them each device of a channel gets: the channel's own key, for channels/NAME/ alone
snapshot    says which versions of the others belong together: the online key
timestamp   says that this is the newest snapshot, every day: the online key
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from securesystemslib.signer import Key
    from tuf.api.metadata import Metadata, Root, Targets

    from stages.release.signing.keys import PublicKey, SigningKey

TOP = ("root", "targets", "snapshot", "timestamp")
ONLINE = ("snapshot", "timestamp")
CHANNELS, CHANNEL = "channels", "channel-"
NAMED = "x-tapeout-name"  # of a key in metadata: the name of its file
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHORT = 16  # characters of a key id that tell it from others


def channel_role(name: str) -> str:
    return f"{CHANNEL}{name}"


def channel_of(role: str) -> str:
    """Return the channel that a role is of, or ""."""
    return role.removeprefix(CHANNEL) if role.startswith(CHANNEL) else ""


def roles_of(word: str, channels: Iterable[str]) -> tuple[str, ...]:
    """Return the roles that a word on the command line means: one of TOP, online, channel-NAME. Raises ConfigError."""
    known = [*TOP, "online", *(channel_role(name) for name in channels)]
    if word not in known:
        raise ConfigError(f"there is no role '{word}' in this repository", hint=suggestion(word, known, "roles"))
    return ONLINE if word == "online" else (word,)


def tuf_key(key: PublicKey) -> Key:
    """Return a key for metadata, with its name in it."""
    made = key.tuf_key()
    made.unrecognized_fields[NAMED] = key.name
    return made


def title(keyid: str, keys: dict[str, Key]) -> str:
    """Return how messages name a key: its file's name and the beginning of its id."""
    found = keys.get(keyid)
    name = found.unrecognized_fields.get(NAMED) if found else None
    return f"{name} ({keyid[:SHORT]})" if isinstance(name, str) and NAME.fullmatch(name) else keyid[:SHORT]


def keys_of(delegator: Root | Targets) -> dict[str, Key]:
    """Return the keys that a delegator knows, by id."""
    from tuf.api.metadata import Root

    if isinstance(delegator, Root):
        return delegator.keys
    return delegator.delegations.keys if delegator.delegations else {}


def sign(metadata: Metadata[Any], role: str, keys: Sequence[SigningKey], delegators: Sequence[Root | Targets]) -> None:
    """Sign with every key that one of the delegators names for the role, in place of the signatures before.

    The first delegator's threshold must be met; those after it are met if the keys do. Raises ConfigError, which names
    the keys that would do.
    """
    named = {keyid for delegator in delegators for keyid in delegator.get_delegated_role(role).keyids}
    metadata.signatures.clear()
    for key in keys:
        if key.public.keyid in named and key.public.keyid not in metadata.signatures:
            metadata.sign(key.tuf_signer(), append=True)
    if not holds(metadata, role, delegators[0]):
        raise missing(metadata, role, delegators[0])


def holds(metadata: Metadata[Any], role: str, delegator: Root | Targets) -> bool:
    """Say whether metadata has as many signatures as the delegator asks of its role."""
    try:
        return bool(delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures))
    except Exception:  # a key or a signature from anybody may be anything: it signs nothing then
        return False


def missing(metadata: Metadata[Any], role: str, delegator: Root | Targets) -> ConfigError:
    """Return the error that says which keys of a role have not signed."""
    found = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    named = ", ".join(title(keyid, keys_of(delegator)) for keyid in found.unsigned)
    have = f" and has {len(found.signed)}" if found.signed else ""
    return ConfigError(
        f"the role '{role}' needs {counted(found.threshold, 'signature')}{have}: "
        f"{found.missing} more by {'one of ' if len(found.unsigned) > found.missing else ''}{named}",
        hint="name the file of the private key with --key; nothing was written",
    )


def can_sign(role: str, keys: Sequence[SigningKey], delegator: Root | Targets) -> bool:
    """Say whether these keys are enough for a role."""
    wanted = delegator.get_delegated_role(role)
    return len({key.public.keyid for key in keys} & set(wanted.keyids)) >= wanted.threshold


def check_keys(roles: Iterable[tuple[str, Root | Targets]], keys: Sequence[SigningKey]) -> None:
    """Raise ConfigError, which names every role that these keys are not enough for, and the keys that would do."""
    wanting = []
    for role, delegator in roles:
        if can_sign(role, keys, delegator):
            continue
        entry = delegator.get_delegated_role(role)
        here = {key.public.keyid for key in keys}
        named = ", ".join(title(keyid, keys_of(delegator)) for keyid in entry.keyids if keyid not in here)
        wanting.append(f"'{role}' {entry.threshold - len(here & set(entry.keyids))} of {named}")
    if wanting:
        raise ConfigError(
            f"keys are missing: {'; '.join(wanting)}",
            hint="name the files of the private keys with --key; nothing was written",
        )


def counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
