"""What a build of the history left: records from the ledger, files from the store or, where they are the same, the
workspace."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from pipelines.checkout import Checkout
from pipelines.digests import hash_bytes
from pipelines.errors import ConfigError, StoreError, suggestion
from pipelines.history import Build, History
from pipelines.ledger import Record

LAST = "last"


def find_build(history: History, text: str) -> Build:
    """Return the build that `text` means: a number, a name, "last", or "last~N", which is N before it. Raises
    ConfigError."""
    builds = history.builds
    if not builds:
        raise ConfigError("nothing has been built yet", hint="run 'tapeout build' first")
    word, _, back = text.partition("~")
    if word == LAST and (text == LAST or back.isdecimal()):
        place = int(back or 0)
        if place >= len(builds):
            many = f"there are {len(builds)} builds" if len(builds) > 1 else "there is only one build"
            raise ConfigError(
                f"{text}: {many}", hint="'tapeout builds' lists them; last is the newest, last~1 before it"
            )
        return builds[place]
    if text.isdecimal():
        found = next((build for build in builds if build.number == int(text)), None)
        if found is None:
            numbers = ", ".join(str(build.number) for build in reversed(builds))
            raise ConfigError(f"there is no build {text}", hint=f"'tapeout builds' lists them: {numbers}")
        return found
    found = next((build for build in builds if build.name == text), None)
    if found is None:
        names = {build.name for build in builds if build.name} | {LAST}
        raise ConfigError(
            f"no build is called '{text}'", hint=f"{suggestion(text, names, 'names')}; or a number, or {LAST}~1"
        )
    return found


class Past:
    """The results of one build."""

    def __init__(self, checkout: Checkout, build: Build) -> None:
        self.checkout = checkout
        self.build = build
        self._records: dict[str, Record | None] = {}

    def record(self, node: str) -> Record | None:
        """Return a node's record, or None where it has no result, or none that anybody remembers."""
        if node not in self._records:
            key = self.build.nodes.get(node)
            self._records[node] = self.checkout.ledger.get(key) if key else None
        return self._records[node]

    def digest(self, node: str) -> str | None:
        """Return the digest of a node's artifact, or None where it is not known."""
        record = self.record(node)
        return record.tree.digest if record else None

    def json(self, node: str, file: str) -> dict[str, Any]:
        """Return the object in a JSON file of a node's artifact. Raises StoreError."""
        try:
            value = json.loads(self.read(node, file))
        except ValueError as error:
            raise StoreError(f"{self.build.title}: {node}: {file} is no JSON: {error}") from error
        if not isinstance(value, Mapping):
            raise StoreError(f"{self.build.title}: {node}: {file} holds no JSON object")
        return dict(value)

    def holds(self, node: str, file: str) -> bool:
        """Say whether a node's artifact had the file; True where that is not known any more."""
        record = self.record(node)
        return record is None or file in record.tree.files

    def read(self, node: str, file: str) -> bytes:
        """Return a file of a node's artifact. Raises StoreError where it is not there any more."""
        record = self.record(node)
        digest = record.tree.files.get(file) if record else None
        if digest is not None and self.checkout.store.holds(digest):
            return self.checkout.store.object_path(digest.md5).read_bytes()
        shown = self.checkout.project.artifacts / "build" / node / file
        if digest is not None and shown.is_file():
            data = shown.read_bytes()
            if hash_bytes(data).sha256 == digest.sha256:
                return data
        raise StoreError(
            f"{self.build.title}: {file} of {node} is not in the store any more: 'tapeout gc' has removed it, or the "
            "cache has gone",
            hint=f"make it again: {shlex.join(['tapeout', 'build', *self.build.overrides])}",
        )
