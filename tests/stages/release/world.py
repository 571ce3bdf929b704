"""A repository with two releases, a server of it, and a client, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UpdateError, VerificationError
from stages.release.client.client import Client, Updated
from stages.release.client.downloading import Patience
from stages.release.manifest import Manifest, read
from tests.stages.release.bundles import make_bundle
from tests.stages.release.server import Server
from tests.stages.release.shelf import DEVICE, Shelf

QUICK = Patience(timeout=2.0, attempts=3, pause=0.01)
OLD, NEW = "1.0.0", "1.1.0"
Refused = UpdateError | VerificationError


class World:
    """A repository with two releases, a server of it, and a client; `stable` offers the first.

    served: over HTTP; else clients read the folder, and there are no threads.
    """

    def __init__(self, path: Path, served: bool = True) -> None:
        self.path, self.shelf = path, Shelf(path / "repository")
        self.manifests: dict[str, Manifest] = {}
        for number, version in enumerate((OLD, NEW)):
            self.release(version, seed=number)
        self.shelf.offer(self.manifests[OLD])
        self.server = Server(path / "repository") if served else None
        self.tested: list[Path] = []
        self.root = self.shelf.first_root()

    def release(self, version: str, **options: Any) -> Manifest:
        make_bundle(self.path / version, version=version, **options)
        self.manifests[version] = self.shelf.add(self.path / version)
        return self.manifests[version]

    def offer(self, version: str | None, **options: Any) -> None:
        self.shelf.offer(self.manifests[version] if version else None, **options)

    def client(self, folder: str = "device", **options: Any) -> Client:
        options = {
            "url": self.server.url if self.server else str(self.shelf.folder),
            "device": DEVICE,
            "channel": "stable",
        } | options
        options = {"root": self.root, "self_test": self.works, "patience": QUICK} | options
        return Client(self.path / folder, **options)

    def works(self, folder: Path) -> str:
        self.tested.append(folder)
        whole(folder)
        return ""

    def update(self, **options: Any) -> Updated:
        updated = self.client(**options).update()
        assert whole(self.client().current()).digest == updated.bundle
        return updated

    def blob(self, version: str, path: str = "decoder.onnx.data") -> str:
        digest = next(file.sha256 for file in self.manifests[version].files if file.path == path)
        return f"blobs/{digest[:2]}/{digest}"


def whole(folder: Path | None) -> Manifest:
    """Hash a bundle's folder against its manifest; return it."""
    assert folder is not None
    manifest = read(folder)
    for file in manifest.files:
        assert hashlib.sha256((folder / file.path).read_bytes()).hexdigest() == file.sha256, file.path
    return manifest


def refuses(world: World, error: type[Refused], *words: str, in_place: str = OLD, **options: Any) -> Any:
    """An update fails with these words, and leaves a whole version in place."""
    with pytest.raises(error) as caught:
        world.client(**options).update()
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert whole(world.client().current()).version == in_place
    return caught.value


def recovers(world: World, version: str = NEW) -> None:
    world.server.faults = []
    assert world.update().version == version
    assert world.update().status == "unchanged"
    assert not list((world.path / "device").glob("partial/*"))


def few(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """All cases, of which only those named run in the fast tests."""
    assert set(fast) <= set(cases)
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]
