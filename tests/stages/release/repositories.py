"""Update repositories with real releases in them, and a judge: python-tuf's own client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from pipelines.project import Project
from stages.release.commands.release import release
from stages.release.layout import Releases
from stages.release.manifest import parse
from stages.release.signing.keys import SigningKey, load_signing_key, new_key
from stages.release.updates.documents import Layout
from stages.release.updates.publishing import Published, publish
from stages.release.updates.repository import Repository, open_repository
from tests.stages.release.projects import entries_of, key_file, make_project, state
from tests.stages.release.projects import released as released

NAMES = ("root-a", "root-b", "online", "stable", "stranger")


@dataclass(frozen=True)
class World:
    """A project, its keys in keys/, and its repository in updates/. root-a and root-b sign roots, both together."""

    folder: Path

    @property
    def project(self) -> Project:
        return Project(self.folder)

    @property
    def directory(self) -> Path:
        return self.folder / "updates"

    @property
    def layout(self) -> Layout:
        return Layout(self.directory)

    def key(self, name: str) -> Path:
        return key_file(self.project) if name == "release" else self.folder / "keys" / name

    def keys(self, *names: str) -> list[SigningKey]:
        return [load_signing_key(self.key(name)) for name in names]

    def words(self, *names: str) -> list[str]:
        """--key and the files of these keys."""
        return ["--key", *(str(self.key(name)) for name in names)]

    @property
    def first_root(self) -> bytes:
        return self.layout.versioned("root", 1).read_bytes()

    def open(self) -> Repository:
        return open_repository(self.directory)

    def publish(self, *names: str, **options: Any) -> Published:
        """Publish with these keys; by default with all that are ever needed."""
        heads = {entry.sequence: entry.digest for entry in entries_of(self.project)}
        keys = self.keys(*(names or ("release", "online", "stable")))
        trusted = [each.public for each in self.keys("release")]
        options = {"trusted": trusted, "heads": heads, **options}
        return publish(self.directory, Releases(self.project), state(self.project), keys, **options)

    def release(self, *words: str) -> None:
        """Run `tapeout release` with the release key."""
        assert release([*words, "--reason", "a test", *self.words("release")], self.project) == 0

    def copy(self, folder: Path) -> World:
        shutil.copytree(self.folder, folder)
        return World(folder)


def make_world(folder: Path) -> World:
    """A project with keys, nothing released, no repository."""
    make_project(folder)
    for name in NAMES:
        new_key(folder / "keys" / name)
    return World(folder)


class Folder(FetcherInterface):
    """Reads a repository's files as a web server would give them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.read: list[str] = []

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self.directory / url.removeprefix("http://x/")
        self.read.append(str(path.relative_to(self.directory)))
        if not path.is_file():
            raise DownloadHTTPError(f"{path}: 404", 404)
        yield path.read_bytes()


@dataclass
class Judge:
    """A client of python-tuf's, with what it has seen in a folder of its own."""

    directory: Path
    memory: Path
    root: bytes

    def updater(self) -> Updater:
        (self.memory / "targets").mkdir(parents=True, exist_ok=True)
        return Updater(
            str(self.memory / "metadata"),
            "http://x/metadata",
            str(self.memory / "targets"),
            "http://x/targets",
            Folder(self.directory),
            bootstrap=self.root,
        )

    def refresh(self) -> Updater:
        """Raises whatever python-tuf raises."""
        (self.memory / "metadata").mkdir(parents=True, exist_ok=True)
        updater = self.updater()
        updater.refresh()
        return updater

    def target(self, path: str, updater: Updater | None = None) -> bytes | None:
        updater = updater or self.refresh()
        found = updater.get_targetinfo(path)
        return Path(updater.download_target(found)).read_bytes() if found else None

    def document(self, channel: str = "stable", device: str = "pixel-8") -> Any:
        data = self.target(f"channels/{channel}/{device}.json")
        return json.loads(data) if data else None

    def whole(self, channel: str = "stable", device: str = "pixel-8") -> Any:
        """Return a channel's document, after all that it leads to was found whole."""
        updater = self.refresh()
        data = self.target(f"channels/{channel}/{device}.json", updater)
        if data is None:
            return None
        document = json.loads(data)
        for arm in (document["champion"], *document["arms"]):
            if arm:
                self.check_bundle(updater, device, arm["version"], arm["bundle"])
        return document

    def check_bundle(self, updater: Updater, device: str, version: str, bundle: str) -> None:
        data = self.target(f"bundles/{device}/{version}/manifest.json", updater)
        assert data is not None and hashlib.sha256(data).hexdigest() == bundle
        for file in parse(data, version).files:
            blob = self.directory / "blobs" / file.sha256[:2] / file.sha256
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == file.sha256
        for source in updater._trusted_set.targets.targets:
            if source.startswith(f"deltas/{device}/{version}/"):
                index = json.loads(self.target(source, updater) or b"")
                assert index["to"] == bundle
                for each in index["files"]:
                    delta = self.directory / "deltas" / each["delta"][:2] / each["delta"]
                    assert hashlib.sha256(delta.read_bytes()).hexdigest() == each["delta"]


def judge(world: World, name: str = "client") -> Judge:
    return Judge(world.directory, world.folder / "clients" / name, world.first_root)


class Kept:
    """What a folder holds, to have it back after a test: quicker than a copy for each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.found = folder, contents(folder)

    def restore(self) -> None:
        now = contents(self.folder)
        same = {path for path in now if path in self.found and now[path] == self.found[path]}
        for path in sorted(set(now) - same, key=lambda path: path.count("/"), reverse=True):
            place = self.folder / path
            place.rmdir() if now[path] is None else place.unlink()
        for path in sorted(set(self.found) - same):
            place, was = self.folder / path, self.found[path]
            if was is None:
                place.mkdir()
            elif isinstance(was, str):
                place.symlink_to(was)
            else:
                place.touch(0o600)
                place.write_bytes(was)


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """{path: bytes of a file, target of a link, None for a folder}"""
    found: dict[str, bytes | str | None] = {}
    for root, folders, names in os.walk(folder):
        for path in (os.path.join(root, name) for name in (*folders, *names)):
            where = os.path.relpath(path, folder)
            if os.path.islink(path):
                found[where] = os.readlink(path)
            elif os.path.isdir(path):
                found[where] = None
            else:
                with open(path, "rb") as file:
                    found[where] = file.read()
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder, and what is in them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
