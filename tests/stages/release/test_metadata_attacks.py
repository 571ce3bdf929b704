"""Whoever has the web server, an old copy of it, or one of the keys: what clients take from them.

Two clients judge: python-tuf's own, and the project's.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.api.metadata import Metadata, MetaFile, TargetFile

from pipelines.errors import ConfigError, UpdateError, VerificationError
from stages.release.client.client import Client
from stages.release.updates.creation import Founding, create
from stages.release.updates.expiry import seconds
from stages.release.updates.overview import overview
from stages.release.updates.repository import open_repository, refresh
from stages.release.updates.rotation import Change, rotate
from tests.stages.release.repositories import Kept, World, judge, make_world, released

REFUSALS = (RepositoryError, DownloadError)
NEW = "1.1.0"


@dataclass
class Readers:
    """A client of python-tuf's and one of the project's, who remember what they have seen."""

    world: World
    name: str

    def tuf(self) -> Any:
        return judge(self.world, self.name).whole()

    def client(self) -> str:
        world = self.world
        folder = world.folder / "clients" / f"{self.name}-client"
        args = (folder, str(world.directory), "pixel-8", "stable", world.first_root, "somebody")
        return Client(*args, self_test=None).update().version

    def version(self) -> str:
        champion = self.tuf()["champion"]["version"]
        assert self.client() == champion
        return str(champion)

    def refuse(self, said: str = "") -> str:
        """Both must refuse what they are given; return what the project's client says."""
        with pytest.raises(REFUSALS):
            self.tuf()
        with pytest.raises((VerificationError, UpdateError)) as caught:
            self.client()
        assert said in str(caught.value)
        return str(caught.value)


def founding(world: World, **days: int) -> Founding:
    a, b, release, online, stable = world.keys("root-a", "root-b", "release", "online", "stable")
    return Founding([a.public, b.public], 2, release, online, {"stable": stable, "beta": stable}, [a, b], days)


@pytest.fixture(scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """1.0.0 was published, and then 1.1.0; a root was rotated in between. before/ is the repository as it was."""
    world = make_world(tmp_path_factory.mktemp("world") / "project")
    create(world.directory, founding(world), seconds())
    released(world.project, "1.0.0")
    world.release("promote", "1.0.0", "--channel", "stable", "--new-channel")
    world.publish()
    seasoned = Readers(world, "seasoned")
    assert seasoned.version() == "1.0.0"
    shutil.copytree(world.directory, world.folder / "before")
    rotate(world.open(), ["root"], Change(), world.keys("root-a", "root-b"), seconds())
    released(world.project, NEW, seed=1)
    world.release("promote", NEW, "--channel", "stable")
    world.publish()
    assert seasoned.version() == NEW
    return world


@pytest.fixture(scope="module")
def _kept(_world: World) -> Kept:
    return Kept(_world.folder)


@pytest.fixture
def world(_world: World, _kept: Kept) -> Iterator[World]:
    yield _world
    _kept.restore()


@pytest.fixture
def seasoned(world: World) -> Readers:
    """They have seen 1.1.0."""
    return Readers(world, "seasoned")


@pytest.fixture
def newcomer(world: World) -> Readers:
    """They know the first root, and nothing else."""
    return Readers(world, "newcomer")


def forge(world: World, signers: dict[str, str], **changed: Any) -> None:
    """Write a new state as somebody would who has some of the keys: {role: the key that signs}, by default its own.

    changed: the signed part of roles ("channel_stable" is a channel's); "meta": what the snapshot says instead.
    """
    now, layout = world.open(), world.layout
    own = {"targets": "release", "snapshot": "online", "timestamp": "online", "channel-stable": "stable"}

    def write(role: str, signed: Any, path: Path) -> MetaFile:
        metadata = Metadata(signed)
        metadata.sign(world.keys(signers.get(role, own[role]))[0].tuf_signer())
        path.write_bytes(metadata.to_bytes())
        return MetaFile.from_data(signed.version, metadata.to_bytes(), ["sha256"])

    snapshot = copy.deepcopy(now.snapshot.signed)
    for name, signed in changed.items():
        if name != "meta":
            role = name.replace("_", "-")
            signed.version += 1
            snapshot.meta[f"{role}.json"] = write(role, signed, layout.versioned(role, signed.version))
    snapshot.meta = changed.get("meta", snapshot.meta)
    snapshot.version += 1
    timestamp = copy.deepcopy(now.timestamp.signed)
    timestamp.version += 1
    timestamp.snapshot_meta = write("snapshot", snapshot, layout.versioned("snapshot", snapshot.version))
    write("timestamp", timestamp, layout.timestamp)


def signed(world: World, role: str) -> Any:
    return copy.deepcopy(world.open().metadata_of(role).signed)


def test_what_was_forged_here_would_be_taken_if_the_keys_were_right(world: World, newcomer: Readers) -> None:
    forge(world, {}, targets=signed(world, "targets"), channel_stable=signed(world, "channel-stable"))
    assert newcomer.version() == NEW


# An old copy of the repository, or parts of it.


def old_timestamp(world: World) -> None:
    shutil.copy(world.folder / "before/metadata/timestamp.json", world.layout.timestamp)


def old_mirror(world: World) -> None:
    shutil.rmtree(world.directory)
    shutil.copytree(world.folder / "before", world.directory)


def old_snapshot(world: World) -> None:
    """By who has the online key: a newer timestamp of an older snapshot."""
    old = open_repository(world.folder / "before").timestamp.signed
    timestamp = signed(world, "timestamp")
    timestamp.version, timestamp.snapshot_meta = timestamp.version + 1, old.snapshot_meta
    metadata = Metadata(timestamp)
    metadata.sign(world.keys("online")[0].tuf_signer())
    world.layout.timestamp.write_bytes(metadata.to_bytes())


def old_targets(world: World) -> None:
    """By who has the online key: a newer snapshot of older targets."""
    old = open_repository(world.folder / "before").snapshot.signed.meta
    forge(world, {}, meta={**world.open().snapshot.signed.meta, "targets.json": old["targets.json"]})


def old_channel(world: World) -> None:
    old = open_repository(world.folder / "before").snapshot.signed.meta
    forge(world, {}, meta={**world.open().snapshot.signed.meta, "channel-stable.json": old["channel-stable.json"]})


def without_channel(world: World) -> None:
    meta = dict(world.open().snapshot.signed.meta)
    del meta["channel-stable.json"]
    forge(world, {}, meta=meta)


@pytest.mark.parametrize("attack", [old_timestamp, old_mirror, old_snapshot, old_targets, old_channel, without_channel])
def test_nobody_is_taken_back(world: World, seasoned: Readers, attack: Callable[[World], None]) -> None:
    attack(world)
    seasoned.refuse()


def replaced(role: str) -> Callable[[World], None]:
    """Put an older version's bytes under the name of the newer one."""

    def attack(world: World) -> None:
        old = open_repository(world.folder / "before").metadata_of(role).signed.version
        now = world.open().metadata_of(role).signed.version
        assert old < now
        shutil.copy(world.layout.versioned(role, old), world.layout.versioned(role, now))

    attack.__name__ = f"older_{role}"
    return attack


def other_document(world: World) -> None:
    """The channel's document of the release before, under the name of the newer one."""
    swap(world, "channels/stable", "pixel-8.json")


def other_manifest(world: World) -> None:
    """The manifest of another release."""
    folder = world.layout.targets / "bundles/pixel-8"
    (old,), (new,) = (list((folder / version).glob("*.manifest.json")) for version in ("1.0.0", NEW))
    shutil.copy(old, new)


def swap(world: World, folder: str, name: str) -> None:
    before = {path.name for path in (world.folder / "before/targets" / folder).glob(f"*.{name}")}
    files = {path.name: path for path in (world.layout.targets / folder).glob(f"*.{name}")}
    (new,) = set(files) - before
    shutil.copy(files[before.pop()], files[new])


@pytest.mark.parametrize(
    "attack", [replaced("snapshot"), replaced("targets"), replaced("channel-stable"), other_document, other_manifest]
)
def test_two_states_cannot_be_mixed(world: World, newcomer: Readers, attack: Callable[[World], None]) -> None:
    attack(world)
    newcomer.refuse()


# Keys of other roles, or of strangers.


@pytest.mark.parametrize("key", ["stranger", "other"])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "channel-stable"])
def test_a_role_is_not_signed_by_another_key(world: World, newcomer: Readers, role: str, key: str) -> None:
    """The others are signed by their own keys, so that this signature alone is wrong."""
    another = {"timestamp": "release", "snapshot": "release", "targets": "online", "channel-stable": "online"}
    changed = {role.replace("-", "_"): signed(world, role)} if role in ("targets", "channel-stable") else {}
    forge(world, {role: another[role] if key == "other" else key}, **changed)
    newcomer.refuse()
    with pytest.raises(VerificationError, match="not signed by"):
        world.open()


@pytest.mark.parametrize("keys", [["root-a"], ["root-b"], ["root-a", "stranger"], ["online"], []])
def test_a_root_needs_its_threshold(world: World, seasoned: Readers, newcomer: Readers, keys: Sequence[str]) -> None:
    root = signed(world, "root")
    root.version += 1
    root.roles["root"].threshold = 1
    metadata = Metadata(root)
    for key in world.keys(*keys):
        metadata.sign(key.tuf_signer(), append=True)
    world.layout.versioned("root", root.version).write_bytes(metadata.to_bytes())
    seasoned.refuse()
    newcomer.refuse()
    with pytest.raises(VerificationError, match="not signed by enough root keys"):
        world.open()


def target_of(world: World, path: str, data: bytes) -> TargetFile:
    found = TargetFile.from_data(path, data, ["sha256"])
    file = world.layout.target(path, found.hashes["sha256"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return found


def document(world: World, channel: str = "stable", **changes: Any) -> bytes:
    return json.dumps({**judge(world, "document").document(), "channel": channel, **changes}).encode()


def test_a_channel_key_makes_no_bundles(world: World, newcomer: Readers) -> None:
    """Neither under a name of its own, nor by naming what the release key did not sign."""
    path = "bundles/pixel-8/9.9.9/manifest.json"
    old = judge(world, "old").target("bundles/pixel-8/1.0.0/manifest.json") or b""
    made = target_of(world, path, old.replace(b'"version": "1.0.0"', b'"version": "9.9.9"'))
    named = {"version": "9.9.9", "bundle": made.hashes["sha256"]}
    channel = signed(world, "channel-stable")
    channel.targets[path] = made
    channel.targets["channels/stable/pixel-8.json"] = target_of(
        world, "channels/stable/pixel-8.json", document(world, champion=named)
    )
    forge(world, {}, channel_stable=channel)
    assert judge(world, "who").target(path) is None
    with pytest.raises(VerificationError, match="the release key signed no such bundle"):
        newcomer.client()
    overview(world.open(), seconds())
    assert path in world.publish().removed  # the next publication says what the history says
    assert newcomer.version() == NEW


def test_what_a_stolen_release_key_added_goes_with_the_next_publication(world: World, newcomer: Readers) -> None:
    path = "bundles/pixel-8/9.9.9/manifest.json"
    targets = signed(world, "targets")
    targets.targets[path] = target_of(world, path, b"{}")
    forge(world, {}, targets=targets)
    assert judge(world).target(path) == b"{}"
    assert world.publish().removed == [path]
    assert not world.publish().signed
    assert newcomer.version() == NEW


@pytest.mark.parametrize("document", [b"[]", b"{}", b'{"champion": 1}', b"\xff", b"{" * 100_000])
def test_a_channel_key_that_signs_nonsense_is_told_so(world: World, newcomer: Readers, document: bytes) -> None:
    path = "channels/stable/pixel-8.json"
    channel = signed(world, "channel-stable")
    channel.targets[path] = target_of(world, path, document)
    forge(world, {}, channel_stable=channel)
    for door in (publisher(world), newcomer.client):
        with pytest.raises(VerificationError, match=r"pixel-8\.json"):
            door()
    world.publish()
    assert newcomer.version() == NEW


def test_a_channel_document_of_one_release_with_the_digest_of_another(world: World, newcomer: Readers) -> None:
    before = next((world.folder / "before/targets/channels/stable").glob("*.pixel-8.json"))
    old = json.loads(before.read_bytes())["champion"]["bundle"]
    channel = signed(world, "channel-stable")
    path = "channels/stable/pixel-8.json"
    channel.targets[path] = target_of(world, path, document(world, champion={"version": NEW, "bundle": old}))
    forge(world, {}, channel_stable=channel)
    with pytest.raises(VerificationError, match="and the release key signed"):
        newcomer.client()


def test_a_channel_key_says_nothing_for_another_channel(world: World) -> None:
    path = "channels/beta/pixel-8.json"
    channel = signed(world, "channel-stable")
    channel.targets[path] = target_of(world, path, document(world, "beta"))
    forge(world, {}, channel_stable=channel)
    assert judge(world).document("beta") is None
    folder = world.folder / "clients/beta"
    with pytest.raises(UpdateError, match="has nothing for"):
        Client(folder, str(world.directory), "pixel-8", "beta", world.first_root, self_test=None).update()


# Time.


@pytest.mark.parametrize(
    "role, days, renewed, life",
    [
        ("timestamp", 2, [], {}),
        ("snapshot", 2, [], {"snapshot": 1, "timestamp": 30}),
        ("targets", 91, ["online", "stable"], {}),
        ("channel-stable", 91, ["online", "release"], {}),
        ("root", 366, ["online", "release", "stable"], {}),
    ],
)
def test_expired_metadata_is_refused(
    world: World, newcomer: Readers, role: str, days: int, renewed: list[str], life: dict[str, int]
) -> None:
    """A repository of that many days ago, of which only these keys have signed anything since."""
    shutil.rmtree(world.directory)
    create(world.directory, founding(world, **life), seconds() - timedelta(days=days))
    if renewed:
        refresh(world.open(), world.keys(*renewed), seconds(), everything=True)
    newcomer.refuse("expired")
    found = overview(world.open(), seconds())
    assert not found["usable"]
    assert role in {each["role"] for each in found["roles"] if each["state"] == "expired"}


def test_a_frozen_repository_is_refused_once_its_timestamp_has_expired(world: World, seasoned: Readers) -> None:
    """Nobody signs any more, or somebody holds back what is signed: after a day it shows."""
    folder = world.folder / "clients/seasoned-client"
    args = (folder, str(world.directory), "pixel-8", "stable", world.first_root, "somebody")
    later = [seconds() + timedelta(hours=hours) for hours in (23, 25)]
    Client(*args, self_test=None, now=lambda: later[0]).update()
    with pytest.raises(UpdateError, match="expired"):
        Client(*args, self_test=None, now=lambda: later[1]).update()
    assert Client(*args).current() is not None  # what is in place stays


# Too much, and nonsense.


@pytest.mark.parametrize("name", ["3.root.json", "timestamp.json", "SNAPSHOT", "TARGETS", "CHANNEL"])
def test_more_than_is_read_of_a_role_is_refused(world: World, newcomer: Readers, name: str) -> None:
    live = world.open()
    roles = {"SNAPSHOT": "snapshot", "TARGETS": "targets", "CHANNEL": "channel-stable"}
    path = world.layout.metadata / name
    if role := roles.get(name):
        path = world.layout.versioned(role, live.metadata_of(role).signed.version)
    data = path.read_bytes() if path.is_file() else world.layout.versioned("root", 2).read_bytes()
    path.write_bytes(data + b" " * 6_000_000)
    newcomer.refuse()
    with pytest.raises(VerificationError):
        world.open()


def mutations(files: dict[Path, bytes], seed: int) -> Iterator[tuple[Path, bytes]]:
    """Yield (file, other bytes for it) without end: of its bytes, and of its JSON."""
    draw = random.Random(seed)
    paths = sorted(files)
    while True:
        path = draw.choice(paths)
        data = files[path]
        change = draw.choice((flip, cut, double, splice, value, value, value, drop, rename))
        changed = change(data, draw, files[draw.choice(paths)])
        if changed != data:
            yield path, changed


def flip(data: bytes, draw: random.Random, _: bytes) -> bytes:
    made = bytearray(data)
    for _number in range(draw.choice((1, 1, 1, 3))):
        made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    return bytes(made)


def cut(data: bytes, draw: random.Random, _: bytes) -> bytes:
    low = draw.randrange(len(data))
    return data[:low] + data[low + draw.choice((1, 2, 20, len(data))) :]


def double(data: bytes, draw: random.Random, _: bytes) -> bytes:
    low = draw.randrange(len(data))
    high = min(len(data), low + draw.choice((1, 10, 200)))
    return data[:high] + data[low:high] + data[high:]


def splice(data: bytes, draw: random.Random, other: bytes) -> bytes:
    return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


ODD: list[Any] = [None, True, -1, 0, 1, 2**31, 10**400, 1.5, "", "x" * 3000, "\ud800", "\x00", [], {}, [[]], {"a": 1}]
ODD += ["../../etc/passwd", "2999-01-01T00:00:00Z", "9999-99-99T00:00:00Z", "root", "sha512", [None] * 50]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value in a JSON document."""
    found = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += [(value, key), *places(inner)]
    return found


def value(data: bytes, draw: random.Random, other: bytes) -> bytes:
    document = json.loads(data)
    container, key = draw.choice(places(document))
    inside = draw.choice(places(json.loads(other)))
    container[key] = draw.choice([*ODD, inside[0][inside[1]]])
    return json.dumps(document).encode()


def drop(data: bytes, draw: random.Random, _: bytes) -> bytes:
    document = json.loads(data)
    container, key = draw.choice(places(document))
    del container[key]
    return json.dumps(document).encode()


def rename(data: bytes, draw: random.Random, _: bytes) -> bytes:
    document = json.loads(data)
    container, key = draw.choice([each for each in places(document) if isinstance(each[0], dict)])
    container[draw.choice(["", "_type", "x", key.upper(), key + " "])] = container.pop(key)
    return json.dumps(document).encode()


def live_files(world: World) -> dict[Path, bytes]:
    """The metadata files that clients read."""
    live = world.open()
    roles = [role for role in live.roles if role not in ("timestamp", "channel-beta")]
    paths = [world.layout.versioned(role, live.metadata_of(role).signed.version) for role in roles]
    return {path: path.read_bytes() for path in (*paths, world.layout.timestamp)}


def same(changed: bytes, data: bytes) -> bool:
    """Say whether two files say the same to who reads them, up to their signatures."""
    try:
        found, true = (Metadata.from_bytes(each).signed.to_dict() for each in (changed, data))
    except RepositoryError:
        return False
    return bool(found == true)


def attacked(world: World, door: Callable[[], object], count: int, seed: int) -> int:
    """Knock at a door with so many mutations; return how many were taken. Each of them says what was signed."""
    files = live_files(world)
    taken = 0
    for number, (path, changed) in enumerate(mutations(files, seed)):
        if number == count:
            return taken
        path.write_bytes(changed)
        try:
            door()
        except (VerificationError, UpdateError, ConfigError) as error:
            assert str(error)
        else:
            taken += 1
            assert same(changed, files[path]), f"{path.name}: mutation {number} of seed {seed} was taken"
        path.write_bytes(files[path])
    return taken


def publisher(world: World) -> Callable[[], object]:
    return lambda: overview(world.open(), seconds())


def client(world: World) -> Callable[[], object]:
    def door() -> object:
        shutil.rmtree(world.folder / "clients", ignore_errors=True)
        return Readers(world, "fresh").client()

    return door


def test_mutated_metadata_is_refused(world: World) -> None:
    assert attacked(world, publisher(world), 120, seed=1) < 12
    assert attacked(world, client(world), 12, seed=2) < 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_much_mutated_metadata_is_refused(world: World, seed: int) -> None:
    assert attacked(world, publisher(world), 2000, 100 + seed) < 200
    assert attacked(world, client(world), 500, 200 + seed) < 50


@pytest.mark.slow
def test_python_tuf_takes_no_mutation(world: World) -> None:
    files = live_files(world)
    for number, (path, changed) in enumerate(mutations(files, 3)):
        if number == 1000:
            break
        path.write_bytes(changed)
        try:
            judge(world, f"tuf-{number}").document()
        except Exception:  # the library's errors are the client's to map
            pass
        else:
            assert same(changed, files[path])
        path.write_bytes(files[path])
