"""An update repository for tests, written with python-tuf alone: so that it can also be wrong, in every way."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from stages.release.manifest import Manifest, read

DEVICE, CHANNELS = "pixel-8", ("beta", "stable")
ROLES = ("root", "targets", "snapshot", "timestamp")


class Shelf:
    """A repository at `folder`. now: when it signs; days: how long the timestamp lives. Changes go live by `commit`."""

    def __init__(self, folder: Path, now: datetime | None = None, days: float = 1) -> None:
        self.folder, self.days = folder, days
        self.now = now or datetime.now(UTC)
        self.keys = {role: CryptoSigner.generate_ed25519() for role in (*ROLES, *CHANNELS)}
        self.root = Root(expires=self.after(365), consistent_snapshot=True)
        for role in ROLES:
            self.root.add_key(self.keys[role].public_key, role)
        roles = {
            f"channel-{name}": DelegatedRole(
                f"channel-{name}", [self.keys[name].public_key.keyid], 1, True, [f"channels/{name}/*"]
            )
            for name in CHANNELS
        }
        keys = {self.keys[name].public_key.keyid: self.keys[name].public_key for name in CHANNELS}
        self.targets: dict[str, dict[str, TargetFile]] = {"targets": {}, **{role: {} for role in roles}}
        self.delegations, self.version = Delegations(keys, roles), 0
        self.sign_root()

    def after(self, days: float) -> datetime:
        return (self.now + timedelta(days=days)).replace(microsecond=0)

    def sign_root(self, *signers: CryptoSigner) -> None:
        """Write the next version of root, signed by its key, and by others."""
        self.root.expires = self.after(365)
        metadata = Metadata(self.root)
        for signer in (self.keys["root"], *signers):
            metadata.sign(signer, append=True)
        self.write(f"metadata/{self.root.version}.root.json", metadata.to_bytes())

    def first_root(self) -> bytes:
        return (self.folder / "metadata/1.root.json").read_bytes()

    def write(self, path: str, data: bytes) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(data)

    def add_target(self, path: str, data: bytes, role: str = "targets") -> None:
        folder, _, name = path.rpartition("/")
        self.write(f"targets/{folder}/{hashlib.sha256(data).hexdigest()}.{name}", data)
        self.targets[role][path] = TargetFile.from_data(path, data)

    def add(self, bundle: Path) -> Manifest:
        """Add a bundle's files and manifest."""
        manifest = read(bundle)
        for file in manifest.files:
            self.write(f"blobs/{file.sha256[:2]}/{file.sha256}", (bundle / file.path).read_bytes())
        self.add_target(f"bundles/{manifest.device}/{manifest.version}/manifest.json", manifest.data)
        return manifest

    def add_deltas(self, old: Path, new: Path, **changes: Any) -> dict[str, Any]:
        """Add the deltas that are worth it; changes: to the first entry of the index, or to its head."""
        from stages.release.deltas.delta import make_delta

        before, after = read(old), read(new)
        had, files = {file.path: file for file in before.files}, []
        for file in after.files:
            if file.path not in had or had[file.path].sha256 == file.sha256:
                continue
            out = self.folder / "delta"
            if make_delta(old / file.path, new / file.path, out, file.path, old, new) is None:
                continue
            data = out.read_bytes()
            out.unlink()
            digest = hashlib.sha256(data).hexdigest()
            self.write(f"deltas/{digest[:2]}/{digest}", data)
            entry = {"path": file.path, "from": had[file.path].sha256, "to": file.sha256, "size": file.size}
            files.append(entry | {"delta": digest, "delta_size": len(data)})
        index = {"delta_version": 1, "from": before.digest, "to": after.digest, "files": files}
        for key, value in changes.items():
            (index if key in ("delta_version", "base", "to") else files[0])[key.replace("base", "from")] = value
        name = f"deltas/{after.device}/{after.version}/{before.digest}.json"
        self.add_target(name, json.dumps(index).encode())
        return index

    def offer(
        self,
        champion: Manifest | None,
        arms: Iterable[tuple[str, Manifest, list[tuple[int, int]]]] = (),
        revoked: Iterable[Manifest] = (),
        channel: str = "stable",
        device: str = DEVICE,
        changes: Mapping[str, Any] | None = None,
    ) -> Shelf:
        """Say what a channel has for a device, and commit. changes: to the document."""
        named = None if champion is None else {"version": champion.version, "bundle": champion.digest}
        document = {
            "channel_version": 1,
            "channel": channel,
            "device": device,
            "sequence": self.version,
            "salt": "salt",
            "champion": named,
            "arms": [
                {"name": name, "version": each.version, "bundle": each.digest, "ranges": ranges}
                for name, each, ranges in arms
            ],
            "revoked": [each.digest for each in revoked],
            **(changes or {}),
        }
        self.add_target(f"channels/{channel}/{device}.json", json.dumps(document).encode(), f"channel-{channel}")
        return self.commit()

    def commit(self, issued: Any = None, lives: Mapping[str, float] | None = None) -> Shelf:
        """Sign a new version of all roles but root. lives: days, by role."""
        self.version += 1
        days = {"timestamp": self.days, "snapshot": 30.0, **(lives or {})}
        meta = {}
        for role, targets in self.targets.items():
            expires = self.after(days.get(role, 90.0))
            signed = Targets(
                self.version,
                expires=expires,
                targets=targets,
                delegations=self.delegations if role == "targets" else None,
            )
            data = self.signed(Metadata(signed), role.removeprefix("channel-"))
            self.write(f"metadata/{self.version}.{role}.json", data)
            meta[f"{role}.json"] = MetaFile.from_data(self.version, data, ["sha256"])
        snapshot = Snapshot(self.version, expires=self.after(days["snapshot"]), meta=meta)
        data = self.signed(Metadata(snapshot), "snapshot")
        self.write(f"metadata/{self.version}.snapshot.json", data)
        extra = {"x-tapeout-issued": issued or self.now.strftime("%Y-%m-%dT%H:%M:%SZ")}
        timestamp = Timestamp(
            self.version,
            expires=self.after(days["timestamp"]),
            snapshot_meta=MetaFile.from_data(self.version, data, ["sha256"]),
            unrecognized_fields=extra,
        )
        self.write("metadata/timestamp.json", self.signed(Metadata(timestamp), "timestamp"))
        return self

    def signed(self, metadata: Metadata[Any], role: str) -> bytes:
        metadata.sign(self.keys[role])
        return metadata.to_bytes()

    def rotate(self, role: str) -> None:
        """Give a top-level role another key."""
        old, self.keys[role] = self.keys[role], CryptoSigner.generate_ed25519()
        self.root.version += 1
        self.root.revoke_key(old.public_key.keyid, role)
        self.root.add_key(self.keys[role].public_key, role)
        self.sign_root(*([old] if role == "root" else []))

    def copy(self, folder: Path) -> Path:
        """Keep what is served now, as an attacker or an old mirror does."""
        shutil.copytree(self.folder, folder)
        return folder
