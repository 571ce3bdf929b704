"""The update client: a device's bundle, kept what its channel says. The reference for the clients of the mobile SDKs.

    from pathlib import Path
    from stages.release.client.client import Client

    root = Path("root.json").read_bytes()  # shipped inside the app
    client = Client(Path("models"), "https://models.example.com", "pixel-8", "stable", root)
    updated = client.update()  # raises UpdateError or VerificationError: what is in place stays
    if (folder := client.current()) is not None:
        print(updated.status, updated.version, folder / "manifest.json")
    client.confirm()  # or, where the new version does not work: client.go_back()

Nothing is used before it is verified: signed metadata (TUF), from it the channel's document, from that the digest of a
manifest, from that each file. Nothing is put in place before it is whole, on the disk, and has answered its own
questions. Killed at any moment, with a full disk, no network, a wrong clock, damaged files: the old version is in
place, or the new one, and the next `update` goes on by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UpdateError, VerificationError
from stages.release.client.clock import utc_now
from stages.release.client.installation import Installation, writing
from stages.release.client.self_test import SelfTest, self_test
from stages.release.client.updating import Update, Updated

if TYPE_CHECKING:
    from stages.release.client.downloading import Patience

Progress = Callable[[str, int, int], object]  # the file, bytes that came in all, bytes of the bundle


class Client:
    """Keeps `folder` at what a channel of the repository at `url` (http(s)://, file:// or a folder) has for a device.

    root: trusted root metadata, needed until the first update has succeeded. installation: an anonymous id, which
    decides on the arm of an experiment; by default a random one, made once. self_test: is given a new bundle's folder,
    and raises where it does not work, or returns a note ("" for none); None: no test. now: the machine's clock.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        device: str,
        channel: str,
        root: bytes | None = None,
        installation: str | None = None,
        self_test: SelfTest | None = self_test,
        *,
        now: Callable[[], datetime] = utc_now,
        patience: Patience | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.place, self.url, self.device, self.channel = Installation(folder.absolute()), url, device, channel
        self.root, self.installation, self.self_test = root, installation, self_test
        self.now, self.patience, self.progress = now, patience, progress

    def update(self) -> Updated:
        """Make the folder hold what the channel says. Raises UpdateError, VerificationError, ConfigError; what is in
        place is then what was, or the last good version where that was damaged."""
        with self.place.locked():
            pointed = self.place.pointed()
            self.place.heal()
            damage = self.place.damage(self.place.current())
            try:
                update = Update(self, pointed, damage)
                with writing(self.place.folder), contextlib.closing(update.source):
                    return update.run()
            except (UpdateError, VerificationError) as error:
                left = self.place.fallback() if damage else None
                if left is None or self.place.damage(left):
                    raise
                self.place.switch(left, None)
                error.hint = (
                    f"what was in place is damaged ({damage[0]}); the last good version is in place. {error.hint}"
                )
                raise

    def current(self) -> Path | None:
        """Return the folder of the bundle in place, None where there is none. Sizes are checked; `update` hashes."""
        digest = self.place.current()
        return self.place.path(digest) if digest is not None else None

    def confirm(self) -> str:
        """Say that the version in place works: it becomes the one to go back to. Returns its digest. Raises
        UpdateError where nothing is in place."""
        with self.place.locked():
            current = self.place.current()
            if current is None:
                raise UpdateError(f"{self.place.folder}: no bundle is in place", hint="'tapeout fetch' brings one")
            self.place.remember(current=current, confirmed=current)
            return current

    def go_back(self, why: str = "the app went back from it") -> Path:
        """Put the last good version in place again; the one left is not taken until the channel has named another.

        Raises UpdateError where there is none, or it is damaged.
        """
        with self.place.locked():
            current, left = self.place.current(), self.place.fallback()
            if current is None or left is None:
                raise UpdateError(
                    f"{self.place.folder}: there is no last good version to go back to",
                    hint="only the version before the one in place is kept; an update brings what the channel says",
                )
            if damaged := self.place.damage(left):
                raise UpdateError(
                    f"{self.place.path(left) / damaged[0]}: the last good version is damaged", hint="update instead"
                )
            bad = {**(self.place.remembered().get("bad") or {}), current: why}
            self.place.remember(bad=bad)
            self.place.switch(left, None)
            self.place.sweep()
            return self.place.path(left)

    def status(self) -> dict[str, Any]:
        """Return what is here, without asking the network: current, fallback: {"version", "bundle", "path"} or None;
        confirmed, damaged (paths of the one in place; hashes it), bad: {digest: why}, installation."""
        state, current = self.place.remembered(), self.place.current()
        return {
            "current": self.described(current),
            "confirmed": current is not None and state.get("confirmed") == current,
            "damaged": self.place.damage(current),
            "fallback": self.described(self.place.fallback()),
            "bad": state.get("bad") or {},
            "installation": state.get("id"),
        }

    def described(self, digest: str | None) -> dict[str, str] | None:
        if digest is None:
            return None
        return {"version": self.place.read(digest).version, "bundle": digest, "path": str(self.place.path(digest))}
