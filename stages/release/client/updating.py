"""One run of the update client: from signed metadata to a bundle in place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import TapeoutError, UpdateError, VerificationError, nearest
from stages.release.client.installation import kept_bad
from stages.release.manifest import MAXIMUM, NAME, Manifest, parse

if TYPE_CHECKING:
    from stages.release.client.assembling import Cost, Delta
    from stages.release.client.client import Client
    from stages.release.client.downloading import Source
    from stages.release.client.trusting import Metadata
    from stages.release.updates.channel_document import ChannelDocument, Offer

NEXT = "the channel's next release will be taken by itself"


@dataclass(frozen=True)
class Updated:
    """What an update did. status: "new" (a version came), "unchanged", "repaired" (damaged files of the one in place
    came again), "back" (to the last good one: the one in place was revoked), "held" (what the channel offers is known
    to be bad here). bundle: the digest of what is in place now. arm: of the experiment, or "champion"; "" if none.

    Bytes: size of the bundle; downloaded in all, metadata too; deltas of it; saved against fetching all files now.
    """

    status: str
    bundle: str
    version: str
    path: Path
    arm: str = ""
    size: int = 0
    downloaded: int = 0
    deltas: int = 0
    saved: int = 0
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "notes": list(self.notes)}


class Update:
    """One run of the client, which has the folder to itself. pointed: the version that was in place, perhaps not whole
    any more. damage: of the one that is."""

    def __init__(self, client: Client, pointed: str | None, damage: list[str]) -> None:
        from stages.release.client.downloading import open_source

        self.client, self.place, self.pointed, self.damage, self.came = client, client.place, pointed, damage, 0
        self.source: Source = open_source(client.url, client.patience)
        self.notes: list[str] = []

    def run(self) -> Updated:
        from stages.release.client.trusting import refresh

        identity = self.place.identity(self.client.installation)
        metadata = refresh(self.place.metadata, self.source, self.place.trust, self.client.root, self.client.now())
        self.notes += metadata.notes
        channel = self.channel(metadata)
        current, offers = self.place.current(), channel.offers(identity)
        self.place.discard(*((set(self.place.present()) & channel.revoked) - {current}))  # never to be gone back to
        if current in channel.revoked:
            self.notes.append(f"what was in place ({self.place.read(current).version}) was revoked")
        bad = kept_bad(state := self.place.remembered(), {offer.bundle for offer in offers})
        if bad != (state.get("bad") or {}):
            self.place.remember(bad=bad)
        usable = [offer for offer in offers if offer.bundle not in channel.revoked and offer.bundle not in bad]
        for offer in offers:
            if offer.bundle in channel.revoked:
                self.notes.append(f"{offer.version} ({offer.arm}) was revoked, and is not taken")
            elif offer.bundle in bad:
                self.notes.append(f"{offer.version} ({offer.arm}) is not taken: {bad[offer.bundle]}; {NEXT}")
        if not usable:
            return self.without_offer(metadata, channel, offers)
        return self.take(metadata, usable[0], channel)

    def channel(self, metadata: Metadata) -> ChannelDocument:
        """Return the channel's document for the device. Raises UpdateError where there is none."""
        from stages.release.updates import channel_document
        from stages.release.updates.roles import NAME as NAMES

        channel, device = self.client.channel, self.client.device
        path = f"channels/{channel}/{device}.json"
        plain = NAMES.fullmatch(channel) and NAMES.fullmatch(device)
        data = metadata.target(path, channel_document.MAXIMUM) if plain else None
        if data is not None:
            return channel_document.parse_channel(data, channel, device, f"{self.source.where}: {path}")
        channels = metadata.channels()
        if channel not in channels:
            guess, known = nearest(channel, channels), ", ".join(channels) or "none"
            raise UpdateError(
                f"{self.source.where}: there is no channel '{channel}'", hint=f"{guess} channels: {known}".strip()
            )
        devices = metadata.devices(channel)
        guess, known = nearest(device, devices), ", ".join(devices) or "none"
        raise UpdateError(
            f"{self.source.where}: channel '{channel}' has nothing for '{device}'",
            hint=f"{guess} devices: {known}".strip(),
        )

    def without_offer(self, metadata: Metadata, channel: ChannelDocument, offers: list[Offer]) -> Updated:
        """Stay with what is in place, or with the last good version where that was revoked or is damaged."""
        current = self.place.current()
        if current is not None and current not in channel.revoked:
            if self.damage:
                self.complete(self.place.path(current), self.place.read(current), metadata)
            return self.done("repaired" if self.damage else "held" if offers else "unchanged", current)
        left = self.place.fallback(channel.revoked)
        if left is not None and not self.place.damage(left):
            self.place.switch(left, None)
            self.place.sweep()
            return self.done("back", left)
        what = "; ".join(self.notes) or f"channel '{self.client.channel}' has no release for it yet"
        raise UpdateError(
            f"{self.client.device} on {self.client.channel}: there is nothing to install: {what}",
            hint="whoever publishes can name another release for the channel",
        )

    def take(self, metadata: Metadata, offer: Offer, channel: ChannelDocument) -> Updated:
        """Have an offer in place: as it is, repaired, or new."""
        manifest, current = self.manifest(metadata, offer), self.place.current()
        if current == offer.bundle and not self.damage:
            return self.done("unchanged", current, offer.arm)
        target = self.place.path(offer.bundle)
        folder = target if target.is_dir() else self.place.partial / offer.bundle
        cost = self.complete(folder, manifest, metadata)
        repaired = offer.bundle in (current, self.pointed)
        if not repaired:
            self.test(folder, manifest, offer)
        if folder != target:
            self.place.adopt(folder, offer.bundle)
        if self.damage:
            self.mend(manifest)
        if self.place.pointed() != offer.bundle:
            self.place.switch(offer.bundle, self.left(current, offer, channel))
        self.place.sweep()
        shutil.rmtree(self.place.partial, ignore_errors=True)
        self.notes += cost.notes
        done = self.done("repaired" if repaired else "new", offer.bundle, offer.arm)
        files = sum(file.size for file in manifest.files)
        return replace(done, deltas=cost.deltas, saved=max(0, files - self.came))

    def manifest(self, metadata: Metadata, offer: Offer) -> Manifest:
        """Return the manifest of an offer. Raises VerificationError unless it is the one that the channel names."""
        device = self.client.device
        path = f"bundles/{device}/{offer.version}/{NAME}"
        where = f"{self.source.where}: {path}"
        signed = metadata.digest(path)
        if signed is None:
            raise VerificationError(
                f"{where}: channel '{self.client.channel}' names it, but the release key signed no such bundle",
                hint="what is in place stays; whoever publishes can mend it: 'tapeout publish DIR'",
            )
        if signed != offer.bundle:
            raise VerificationError(
                f"{where}: channel '{self.client.channel}' names the bundle {offer.bundle}, and the release key signed "
                f"{signed}",
                hint="one of the two was changed without the other's key; what is in place stays",
            )
        manifest = parse(metadata.target(path, MAXIMUM) or b"", where)
        if manifest.digest != offer.bundle or (manifest.device, manifest.version) != (device, offer.version):
            raise VerificationError(
                f"{where}: it is {manifest.title}, expected {offer.version} for {device}", hint="what is in place stays"
            )
        return manifest

    def complete(self, folder: Path, manifest: Manifest, metadata: Metadata) -> Cost:
        """Make the folder hold the whole bundle. Raises VerificationError and UpdateError."""
        from stages.release.client import assembling

        deltas = self.deltas(manifest, metadata) if folder.parent == self.place.partial else {}
        self.tidy({folder.name} | {f"{each}.part" for each in self.wanted(manifest, deltas)})
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return assembling.complete(folder, manifest, self.place, self.source, deltas, self.said(manifest))
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            shutil.rmtree(self.place.partial, ignore_errors=True)  # something that is not ours lies in the way
            raise

    def wanted(self, manifest: Manifest, deltas: dict[str, Delta]) -> set[str]:
        return {file.sha256 for file in manifest.files} | {delta.sha256 for delta in deltas.values()}

    def tidy(self, kept: set[str]) -> None:
        """Remove what partial/ holds of other updates."""
        if self.place.partial.exists() and not self.place.partial.is_dir():
            self.place.partial.unlink()
        self.place.partial.mkdir(parents=True, exist_ok=True)
        for path in self.place.partial.iterdir():
            if path.is_dir() and (path.name not in kept or path.name.endswith(".part")):
                shutil.rmtree(path)
            elif not path.is_dir() and (path.name not in kept or not path.name.endswith(".part")):
                path.unlink()

    def deltas(self, manifest: Manifest, metadata: Metadata) -> dict[str, Delta]:
        """Return the deltas from a version that is here, by path; whatever is wrong with them, files come whole."""
        from stages.release.client.assembling import INDEX_MAXIMUM, parse_index

        for base in filter(None, (self.place.current(), self.place.fallback())):
            path = f"deltas/{manifest.device}/{manifest.version}/{base}.json"
            try:
                data = metadata.target(path, INDEX_MAXIMUM)
                if data is not None:
                    old = self.place.read(base)
                    return parse_index(data, base, manifest, old, f"{self.source.where}: {path}")
            except (VerificationError, UpdateError) as cause:
                self.notes.append(f"the deltas cannot be used, so files come whole: {cause.message}")
        return {}

    def said(self, manifest: Manifest) -> Callable[[str, int], None]:
        """Return what tells of progress."""

        def said(path: str, count: int) -> None:
            self.came += count
            if self.client.progress is not None:
                self.client.progress(path, self.came, manifest.size)

        return said

    def test(self, folder: Path, manifest: Manifest, offer: Offer) -> None:
        """Run the self-test. Raises UpdateError where it fails; the version is then remembered as bad."""
        if self.client.self_test is None:
            self.notes.append("the self-test was skipped, as asked")
            return
        try:
            note = self.client.self_test(folder)
        except UpdateError:
            raise  # it could not be run
        except Exception as cause:  # the app's own test may raise anything
            why = cause.message if isinstance(cause, TapeoutError) else f"{type(cause).__name__}: {cause}"
            why = why.replace(f"{folder}/", "")  # where it lies now says nothing later
            bad = {**(self.place.remembered().get("bad") or {}), offer.bundle: f"its self-test failed here: {why}"}
            self.place.remember(bad=bad)
            shutil.rmtree(folder, ignore_errors=True)
            raise UpdateError(
                f"{manifest.title}: its self-test failed, and it is not used: {why}",
                hint=f"the version in place stays; {NEXT}",
            ) from cause
        if note:
            self.notes.append(note)

    def mend(self, manifest: Manifest) -> None:
        """Repair the other versions here with files that are whole now: damaged ones may be the same file in all."""
        from stages.release.client.assembling import taken
        from stages.release.client.installation import holds

        here = {file.sha256: self.place.path(manifest.digest) / file.path for file in manifest.files}
        for digest in filter(None, (self.place.current(), self.place.fallback())):
            for file in self.place.read(digest).files if digest != manifest.digest else ():
                target = self.place.path(digest) / file.path
                if file.sha256 in here and not holds(target, file):
                    taken(target, file, [here[file.sha256]])

    def left(self, current: str | None, offer: Offer, channel: ChannelDocument) -> str | None:
        """Return the version to go back to from a new one: the last that was confirmed, else the one in place."""
        confirmed = self.place.remembered().get("confirmed")
        for digest in (confirmed, current):
            if digest in (None, offer.bundle) or digest in channel.revoked:
                continue
            if self.place.manifest(digest) is not None and not self.place.damage(digest):
                return str(digest)
        return None

    def done(self, status: str, digest: str, arm: str = "") -> Updated:
        manifest, path = self.place.read(digest), self.place.path(digest)
        return Updated(
            status, digest, manifest.version, path, arm, manifest.size, self.source.received, notes=tuple(self.notes)
        )
