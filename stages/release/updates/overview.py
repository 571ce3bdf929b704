"""What an update repository is at this moment: roles, keys, expiry, channels, sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from stages.release.updates import expiry
from stages.release.updates.adding import read_target
from stages.release.updates.channel_document import parse_channel
from stages.release.updates.publish_plan import HISTORY, document_path
from stages.release.updates.repository import Repository
from stages.release.updates.roles import SHORT, keys_of, title
from stages.release.updates.rotation import differences, unsigned

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def overview(repository: Repository, now: datetime) -> dict[str, Any]:
    """Return what `tapeout repository status` says, for machines. Raises VerificationError for a damaged document."""
    roles = [role_of(repository, role, now) for role in repository.roles]
    root = repository.root
    staged = None
    if repository.next:
        after = repository.next
        staged = {
            "version": after.signed.version,
            "changes": list(differences(root, after.signed)),
            "missing": list(unsigned(after, root)),
        }
    layout = repository.layout
    return {
        "root": root.version,
        "usable": all(role["state"] in ("good", "soon") for role in roles),
        "roles": roles,
        "channels": {name: documents_of(repository, name) for name in repository.channels},
        "staged": staged,
        "published_from": repository.targets.signed.unrecognized_fields.get(HISTORY),
        "sizes": {name: size_of(layout.folder / name) for name in ("metadata", "targets", "blobs", "deltas")},
    }


def role_of(repository: Repository, role: str, now: datetime) -> dict[str, Any]:
    """Return a role's keys and state: good, soon (to expire), expired, refused (its keys were rotated)."""
    signed, delegator = repository.metadata_of(role).signed, repository.delegator(role)
    entry = delegator.get_delegated_role(role)
    share = expiry.left(role, signed, repository.root, now)
    state = "expired" if share <= 0 else "soon" if share < expiry.WARN else "good"
    return {
        "role": role,
        "version": signed.version,
        "threshold": entry.threshold,
        "keys": [{"keyid": keyid, "name": title(keyid, keys_of(delegator))} for keyid in entry.keyids],
        "expires": expiry.text(signed.expires),
        "days_left": round((signed.expires - now).total_seconds() / 86400, 2),
        "state": "refused" if role in repository.refused else state,
    }


def documents_of(repository: Repository, channel: str) -> dict[str, Any]:
    """Return {device: document} of a channel. Raises VerificationError."""
    found = {}
    for path, target in repository.channels[channel].signed.targets.items():
        device = path.removeprefix(f"channels/{channel}/").removesuffix(".json")
        if path == document_path(channel, device):  # anything else is asked for by no client
            found[device] = parse_channel(read_target(repository.layout, path, target), channel, device, path).value
    return found


def size_of(folder: Path) -> dict[str, int]:
    """Return how many files a folder has, and their bytes."""
    files = size = 0
    for root, _, names in os.walk(folder):
        files += len(names)
        size += sum(Path(root, name).lstat().st_size for name in names)
    return {"files": files, "bytes": size}


def lines(found: dict[str, Any], title_of: str) -> Iterator[str]:
    """Yield an overview for the terminal."""
    yield f"{title_of}: root {found['root']}"
    yield f"  {'role':<20}{'version':>8}  {'signed by':<12}{'expires':<22}{'days left':>10}"
    for role in found["roles"]:
        share = f"{role['threshold']} of {len(role['keys'])}"
        word = {"good": "", "soon": "  soon", "expired": "  EXPIRED", "refused": "  REFUSED"}[role["state"]]
        when = f"{role['expires']:<22}{role['days_left']:>10.1f}{word}"
        yield f"  {role['role']:<20}{role['version']:>8}  {share:<12}{when}"
        yield f"  {'':<20}{'':>8}  {', '.join(key['name'] for key in role['keys'])}"
    for name, documents in found["channels"].items():
        yield f"  channel {name}" + ("" if documents else ": names nothing yet")
        for device, document in sorted(documents.items()):
            yield f"    {device:<20}{served(document)}"
    if staged := found["staged"]:
        yield f"  root {staged['version']} waits for signatures: {'; '.join(staged['missing'])}"
        yield from (f"    {change}" for change in staged["changes"])
    sizes = ", ".join(f"{name} {size(each['bytes'])} in {each['files']}" for name, each in found["sizes"].items())
    yield f"  files               {sizes}"
    yield from advice(found, title_of)


def served(document: dict[str, Any]) -> str:
    """Say what a channel's document names."""
    champion, arms = document["champion"], document["arms"]
    shares = [(arm, sum(high - low for low, high in arm["ranges"]) / 100) for arm in arms]
    parts = [f"{champion['version']} ({champion['bundle'][:SHORT]})" if champion else "nothing"]
    parts += [f"{arm['name']}: {arm['version']} for {share:g} %" for arm, share in shares]
    revoked = document["revoked"]
    return ", ".join(parts) + (f"; revoked: {len(revoked)}" if revoked else "")


def size(number: float) -> str:
    for unit in UNITS[:-1]:
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} {UNITS[-1]}"


def advice(found: dict[str, Any], folder: str) -> Iterator[str]:
    """Yield what somebody must do."""
    for role in found["roles"]:
        names = ", ".join(key["name"] for key in role["keys"])
        how = (
            f"tapeout repository rotate {folder} root"
            if role["role"] == "root"
            else f"tapeout repository refresh {folder}"
        )
        if role["state"] == "refused":
            yield f"  clients refuse '{role['role']}' until it is signed by {names}: {how} --key ..."
        elif role["state"] != "good":
            word = "has expired: clients refuse updates" if role["state"] == "expired" else "expires soon"
            yield f"  '{role['role']}' {word}; with the key of {names}: {how} --key ..."
