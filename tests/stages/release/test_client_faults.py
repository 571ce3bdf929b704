"""Servers that lie, networks that break, metadata that is forged, old or frozen, and clocks that are wrong.

After each a whole, verified version is in place, the old or the new one, and a plain update recovers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import DelegatedRole

from pipelines.errors import UpdateError, VerificationError
from pipelines.sealed import read_sealed, write_sealed
from stages.release.client.downloading import CHUNK, SPARE, Patience, download, open_source, read, redirected
from tests.stages.release.server import UNTOLD, Fault, Server, serving
from tests.stages.release.shelf import DEVICE
from tests.stages.release.world import NEW, OLD, QUICK, Refused, World, few, recovers, refuses, whole


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.server.close()


@pytest.fixture
def updated(world: World) -> World:
    """The old release is in place, and the channel names the new one."""
    world.update()
    world.offer(NEW)
    world.server.requests.clear()
    return world


# What a server sends

BLOBS: dict[str, tuple[Callable[[bytes], Fault], type[Refused], str]] = {
    "not there": (lambda data: Fault(status=404), UpdateError, "is not there (HTTP 404)"),
    "forbidden": (lambda data: Fault(status=403), UpdateError, "is refused (HTTP 403)"),
    "the server fails": (lambda data: Fault(status=500), UpdateError, "the server fails (HTTP 500)"),
    "other bytes": (lambda data: Fault(data=data[:-1] + b"x"), VerificationError, "its sha256 is another"),
    "too short a file": (lambda data: Fault(data=data[:-9]), VerificationError, "has 49991 bytes there"),
    "too long a file": (lambda data: Fault(more=b"x" * 9), VerificationError, "has 50009 bytes there"),
    "announces a terabyte": (lambda data: Fault(length=1 << 40), VerificationError, "bytes there; the signed"),
    "announces too little": (lambda data: Fault(length=10), VerificationError, "has 10 bytes there"),
    "goes on for ever": (lambda data: Fault(more=b"x" * 99_999, length=UNTOLD), VerificationError, "goes on after the"),
    "cut again and again": (lambda data: Fault(cut=7), UpdateError, "of 50000 bytes here"),
    "compressed": (lambda data: Fault(headers={"Content-Encoding": "gzip"}), UpdateError, "comes compressed"),
    "sent nowhere": (lambda data: Fault(status=302), UpdateError, "HTTP 302"),
}


LIES = ("not there", "other bytes", "too short a file", "goes on for ever", "cut again and again")


@pytest.mark.parametrize("case", few(BLOBS, *LIES))
def test_a_server_that_lies_about_a_file(case: str, updated: World) -> None:
    make, error, said = BLOBS[case]
    path = updated.blob(NEW)
    fault = make((updated.shelf.folder / path).read_bytes())
    fault.path = path
    updated.server.faults = [fault]
    refuses(updated, error, path, said)
    recovers(updated)


@pytest.mark.parametrize("ranges", [True, False], ids=["resumes", "starts anew"])
def test_a_connection_that_is_cut(ranges: bool, updated: World) -> None:
    path = updated.blob(NEW)
    updated.server.faults = [Fault(path, times=1, cut=30_000), Fault(path, times=1, ranges=ranges, cut=40_000)]
    assert updated.update().version == NEW
    wanted = [line.partition(" ")[2] for line in updated.server.requests if line.startswith(path)]
    assert wanted[:2] == ["", "bytes=30000-"] and len(wanted) == (2 if ranges else 3)


def test_the_next_run_goes_on_where_the_last_one_was_cut(updated: World) -> None:
    path = updated.blob(NEW)
    updated.server.faults = [Fault(path, times=1, cut=30_000), Fault(path, status=503)]
    refuses(updated, UpdateError, "HTTP 503", "30000 of 50000 bytes")
    updated.server.requests.clear()
    recovers(updated)
    assert f"{path} bytes=30000-" in updated.server.requests


def test_a_part_that_is_damaged_is_fetched_again(updated: World) -> None:
    path = updated.blob(NEW)
    updated.server.faults = [Fault(path, times=1, cut=30_000), Fault(path, status=503)]
    refuses(updated, UpdateError, "HTTP 503")
    (part,) = (updated.path / "device/partial").glob("*.part")
    for damage in (b"x" * 30_000, b"x" * 50_000, b"x" * 70_000):
        part.write_bytes(damage)
        updated.server.faults = [Fault(path, status=404)] if len(damage) > 30_000 else []
        if updated.server.faults:
            refuses(updated, UpdateError, "HTTP 404")
            part.parent.mkdir(exist_ok=True)
        else:
            recovers(updated)
            updated.offer(OLD)
            updated.update()
            shutil.rmtree(updated.path / "device/versions" / updated.manifests[NEW].digest)
            updated.offer(NEW)
            part.parent.mkdir(exist_ok=True)
    recovers(updated)


def test_no_server(updated: World) -> None:
    updated.server.close()
    refuses(updated, UpdateError, "the connection was cut in metadata/2.root.json", "refused")
    updated.server = Server(updated.shelf.folder)
    recovers(updated)


def test_no_repository_at_the_address(world: World) -> None:
    for url in (f"{world.server.url}/nowhere", str(world.path / "nowhere")):
        with pytest.raises(UpdateError, match="there is no update repository"):
            world.client(url=url).update()


def test_a_server_that_takes_back_what_it_sent(tmp_path: Path) -> None:
    """It cuts the file, answers the rest with HTTP 416, and sends the beginning again: for ever, and ever longer."""
    data, partial = random.Random(3).randbytes(1 << 20), tmp_path / "partial"
    (tmp_path / "served").mkdir()
    (tmp_path / "served/file").write_bytes(data)

    def refused(step: int, said: str) -> int:
        cuts = [min(70_000 + step * time, len(data) - 1) for time in range(40)]
        faults = [(Fault(times=1, cut=cut), Fault(times=1, status=416)) for cut in cuts]
        with serving(tmp_path / "served") as server:
            server.faults = list(chain.from_iterable(faults))
            source = open_source(server.url, Patience(2.0, attempts=3, pause=0.001))
            with contextlib.closing(source), pytest.raises(UpdateError, match=said):
                download(source, "file", partial, len(data), hashlib.sha256(data).hexdigest())
        partial.unlink()
        return source.received

    assert refused(0, "cannot be resumed") == 2 * 70_000
    assert refused(70_000, "the same ones again and again") <= 2 * len(data) + SPARE + CHUNK


DRIPS = (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;")


@pytest.mark.parametrize("head", DRIPS, ids=["headers", "the head of a chunk"])
def test_a_server_that_sends_byte_by_byte(head: bytes, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.faults = [Fault(drip=head)]
        source, began = open_source(server.url, Patience(timeout=0.05, attempts=1)), time.monotonic()
        with contextlib.closing(source), pytest.raises(UpdateError, match=r"cut|no answer"):
            read(source, "metadata/timestamp.json", 1000)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("ftp://example.org/x", "another scheme than http: 'ftp"),
        ("http://[::1", "redirected to no address"),
        ("/metadata/timestamp.json", "redirected more than 5 times"),
    ],
)
def test_a_redirect_that_is_not_followed(location: str, said: str, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.faults = [Fault("metadata/", status=302, headers={"Location": location})]
        source = open_source(server.url, QUICK)
        with contextlib.closing(source), pytest.raises(UpdateError, match=said):
            read(source, "metadata/timestamp.json", 1000)


def test_a_redirect_is_followed_but_never_away_from_tls(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"found")
    with serving(tmp_path) as server:
        server.faults = [Fault("moved", status=301, headers={"Location": "/file"})]
        source = open_source(server.url, QUICK)
        with contextlib.closing(source):
            assert read(source, "moved", 1000) == b"found"
    assert redirected("https://a:b@x.org/1", "https://x.org/2", "") == "https://a:b@x.org/2"
    with pytest.raises(UpdateError, match="from https to http"):
        redirected("https://x.org/1", "http://x.org/2", "")


# Metadata


def test_a_rollback_is_refused(world: World) -> None:
    old = world.shelf.copy(world.path / "old")
    world.offer(NEW)
    world.update()
    world.server.folder = old
    error = refuses(world, VerificationError, "timestamp.json is older than what was seen", in_place=NEW)
    assert "what is in place stays" in error.hint


DAMAGED_METADATA: dict[str, Callable[[Path], object]] = {
    "the folder is gone": lambda folder: shutil.rmtree(folder),
    "the folder is a file": lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"x")),
    "an empty timestamp": lambda folder: (folder / "timestamp.json").write_bytes(b""),
    "a timestamp that is a folder": lambda folder: (
        (folder / "timestamp.json").unlink(),
        (folder / "timestamp.json").mkdir(),
    ),
    "all files are garbage": lambda folder: [
        path.write_bytes(os.urandom(500)) for path in folder.rglob("*") if path.is_file()
    ],
    "roots are gone": lambda folder: shutil.rmtree(folder / "root_history"),
}


@pytest.mark.parametrize("case", few(DAMAGED_METADATA, "the folder is a file"))
def test_damaged_metadata_is_dropped_without_loss_of_protection(case: str, world: World) -> None:
    old = world.shelf.copy(world.path / "old")
    world.offer(NEW)
    world.update(root=world.root)
    DAMAGED_METADATA[case](world.path / "device/metadata")
    world.server.folder = old
    refuses(world, VerificationError, "rolled back", in_place=NEW, root=None)
    world.server.folder = world.shelf.folder
    world.root = None
    assert world.update().status == "unchanged"


LOST: dict[str, tuple[tuple[str, ...], bytes | None]] = {
    "the first copy is empty": (("trust.json",), b""),
    "the first copy is gone": (("trust.json",), None),
    "the second copy is another file": (("trust.copy.json",), b"{}"),
    "both are other files": (("trust.json", "trust.copy.json"), b"{}"),
    "both are gone": (("trust.json", "trust.copy.json"), None),
}


@pytest.mark.parametrize("case", few(LOST, "the first copy is empty", "both are gone"))
def test_what_protects_from_rollback_is_kept_twice(case: str, world: World) -> None:
    copies, damage = LOST[case]
    old = world.shelf.copy(world.path / "old")
    world.offer(NEW)
    world.update()
    for name in copies:
        path = world.path / "device" / name
        path.unlink() if damage is None else path.write_bytes(damage)
    if len(copies) == 1:
        shutil.rmtree(world.path / "device/metadata")
    world.server.folder = old
    refuses(world, VerificationError, "rolled back", in_place=NEW, root=None)
    world.server.folder, world.root = world.shelf.folder, None
    assert world.update().status == "unchanged"


ODD: list[dict[str, Any]] = [
    {"versions": {"timestamp": "3"}},
    {"versions": [1, 2]},
    {"keys": {"timestamp": 7}},
    {"root": 7},
    {"root": "none", "versions": {"root": 9}},
    {"issued": ["now"]},
]


@pytest.mark.parametrize("copies", few(["one", "both"], "both"))
@pytest.mark.parametrize("odd", few(range(len(ODD)), 0, 4))
def test_what_protects_from_rollback_in_another_shape_is_damaged(odd: int, copies: str, world: World) -> None:
    old = world.shelf.copy(world.path / "old")
    world.offer(NEW)
    world.update()
    paths = [world.path / "device/trust.json", world.path / "device/trust.copy.json"]
    for path in paths if copies == "both" else paths[:1]:
        write_sealed(path, {**(read_sealed(path) or {}), **ODD[odd]})
    world.server.folder = old
    refuses(world, VerificationError, "rolled back", in_place=NEW, root=None)
    world.server.folder, world.root = world.shelf.folder, None
    assert world.update().status == "unchanged"


def later(world: World, **passed: float) -> dict[str, Any]:
    return {"now": lambda: world.shelf.now + timedelta(**passed)}


def test_frozen_metadata_is_refused(updated: World) -> None:
    """An old mirror serves the same files for ever."""
    said = ("its timestamp metadata expired at", "this machine's clock says", "frozen", "clock is wrong: set it")
    refuses(updated, UpdateError, *said, **later(updated, days=2))
    recovers(updated)  # with a clock that is right again


def test_a_clock_that_is_behind_is_seen(updated: World) -> None:
    found = updated.update(**later(updated, days=-400))
    assert found.version == NEW and "the clock is behind" in found.notes[0]


def test_a_clock_set_back_revives_nothing(updated: World) -> None:
    """Metadata that has expired by the time that was seen signed stays so, whatever the clock says."""
    updated.update()
    updated.shelf.commit(lives={"timestamp": -1}, issued="none")
    said = ("timestamp metadata expired at", "the clock is behind, and expiry is judged by that later time")
    refuses(updated, UpdateError, *said, in_place=NEW, **later(updated, days=-30))
    shutil.rmtree(updated.path / "device/metadata")
    refuses(updated, UpdateError, *said, in_place=NEW, **later(updated, days=-30))
    updated.shelf.commit()
    recovers(updated)


ROLES_BELOW = few(["snapshot", "targets", "channel-stable"], "channel-stable")


@pytest.mark.parametrize("role", ROLES_BELOW)
def test_every_role_expires(role: str, updated: World) -> None:
    updated.shelf.commit(lives={role: -0.5})
    refuses(updated, UpdateError, f"its {role} metadata expired")
    updated.shelf.commit()
    recovers(updated)


@pytest.mark.parametrize("issued", few(["2999-01-01T00:00:00Z", 7, "soon", None], "2999-01-01T00:00:00Z"))
def test_an_odd_time_of_issue_bounds_nothing(issued: Any, updated: World) -> None:
    updated.shelf.commit(issued=issued)
    assert updated.update().version == NEW
    assert updated.update().notes == ()


@pytest.mark.parametrize("role", ROLES_BELOW)
def test_parts_of_two_releases_do_not_mix(role: str, updated: World) -> None:
    folder, version = updated.shelf.folder / "metadata", updated.shelf.version
    shutil.copy(folder / f"{version - 1}.{role}.json", folder / f"{version}.{role}.json")
    refuses(updated, VerificationError, f"metadata/{version}.{role}.json", "parts of two releases are mixed")
    updated.offer(NEW)
    recovers(updated)


@pytest.mark.parametrize("role", few(["timestamp", "snapshot", "targets", "stable"], "timestamp", "stable"))
def test_another_key_signs_nothing(role: str, updated: World) -> None:
    keys = updated.shelf.keys
    keys[role], right = keys["root"], keys[role]
    updated.shelf.commit()
    refuses(updated, VerificationError, "is not signed by enough of the keys that may sign it")
    keys[role] = right
    updated.shelf.commit()
    recovers(updated)


def test_the_release_key_cannot_name_what_a_channel_has(updated: World) -> None:
    """Nor a role that it makes, which is asked before the channel's own."""
    shelf, path = updated.shelf, f"channels/stable/{DEVICE}.json"
    shelf.targets["targets"][path] = shelf.targets["channel-stable"][path]
    shelf.commit()
    refuses(updated, VerificationError, f"the targets metadata names {path}, which a channel's own role alone may name")
    shelf.targets["rogue"] = {path: shelf.targets["targets"].pop(path)}
    shelf.keys["rogue"], roles = shelf.keys["targets"], shelf.delegations.roles
    shelf.delegations.keys[shelf.keys["rogue"].public_key.keyid] = shelf.keys["rogue"].public_key
    rogue = DelegatedRole("rogue", [shelf.keys["rogue"].public_key.keyid], 1, False, ["channels/stable/*"])
    shelf.delegations.roles = {"rogue": rogue, **roles}
    shelf.commit()
    refuses(updated, VerificationError, f"another role names {path}, which the role channel-stable alone may name")
    shelf.delegations.roles = roles
    shelf.commit()
    recovers(updated)


def test_keys_are_rotated(updated: World) -> None:
    """Also after a thief of the timestamp's key has taken versions and time far ahead."""
    updated.shelf.version += 1000
    updated.shelf.now += timedelta(days=1000)
    updated.shelf.commit()
    updated.update()
    updated.shelf.version -= 999
    updated.shelf.now -= timedelta(days=1000)
    for role in ("timestamp", "snapshot", "targets", "root"):
        updated.shelf.rotate(role)
    updated.offer(NEW)
    assert updated.update().status == "unchanged" and updated.update().notes == ()


def test_another_repositorys_root_changes_nothing(updated: World) -> None:
    """A slip on the command line; the next run goes on as if it had not been."""
    other = World(updated.path / "other", served=False)
    with pytest.raises((UpdateError, VerificationError)) as caught:
        updated.client(root=other.root).update()
    assert "is it this repository's?" in caught.value.hint
    assert updated.client(root=None).update().status in ("new", "unchanged")


def test_an_old_root_takes_no_protection_away(world: World) -> None:
    """Somebody who holds back a rotation of keys, from a client whose metadata is lost, gains nothing by it."""
    first = world.shelf.copy(world.path / "first")
    for role in ("timestamp", "snapshot"):
        world.shelf.rotate(role)
    world.shelf.commit()
    second = world.shelf.copy(world.path / "second")
    world.offer(NEW)
    world.update()
    for old in (first, second):
        shutil.rmtree(world.path / "device/metadata")
        world.server.folder = old
        refuses(world, VerificationError, "it was rolled back", in_place=NEW)
    world.server.folder = world.shelf.folder
    assert world.update().status == "unchanged"


def test_a_root_that_its_predecessor_did_not_sign(updated: World) -> None:
    rogue = updated.shelf.copy(updated.path / "rogue")
    (rogue / "metadata/2.root.json").write_bytes(World(updated.path / "other").shelf.first_root())
    updated.server.folder = rogue
    refuses(updated, VerificationError, "metadata/2.root.json is not signed by enough")
    updated.server.folder = updated.shelf.folder
    recovers(updated)


def test_metadata_without_end(updated: World) -> None:
    for path in ("metadata/timestamp.json", "metadata/2.root.json", "channels/stable"):
        updated.server.faults = [Fault(path, data=b" " * 3_000_000)]
        refuses(updated, VerificationError, "has more than the", "bytes that it may have")
    recovers(updated)


def test_a_signed_document_that_is_too_long(updated: World) -> None:
    updated.shelf.add_target(f"channels/stable/{DEVICE}.json", b" " * ((4 << 20) + 1), "channel-stable")
    updated.shelf.commit()
    refuses(updated, VerificationError, "is to have 4194305 bytes; at most 4194304 are read")


def test_metadata_that_is_missing(updated: World) -> None:
    updated.server.faults = [Fault(f"metadata/{updated.shelf.version}.targets.json", status=404)]
    refuses(updated, UpdateError, "though the signed metadata names it: the repository is not whole")
    recovers(updated)


PLACES = (
    "timestamp.json",
    ".snapshot.json",
    ".targets.json",
    ".channel-stable.json",
    "channels/",
    "bundles/",
    "blobs/",
)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bytes as they should be but for something: a flip, a cut, a piece doubled, a number, a deep nest."""
    place, found = chance.randrange(len(data) + 1), bytearray(data)
    way = chance.randrange(7)
    if way == 0 and data:
        found[place % len(data)] ^= 1 << chance.randrange(8)
    elif way == 1:
        del found[place:]
    elif way == 2:
        found[place:place] = found[: chance.randrange(200)]
    elif way == 3:
        found[place:place] = chance.choice([b"[" * 5000, b"9" * 5000, b"\xff\xfe", b"\\ud800", b"null", b"NaN", b"\0"])
    elif way == 4:
        del found[place : place + chance.randrange(1, 9)]
    elif way == 5:
        found = bytearray(chance.randbytes(chance.randrange(300)))
    else:
        for old, new in ((b'"version":', b'"version":-'), (b'"_type":"', b'"_type":"x'), (b'":{', b'":[{}],"x":{')):
            if chance.random() < 0.5:
                found = bytearray(bytes(found).replace(old, new, 1))
    return bytes(found)


def mutations(world: World, seeds: range) -> None:
    """Each ends in a refusal, or leaves the very files that were meant."""
    world.update()
    kept = world.path / "kept"
    shutil.copytree(world.path / "device", kept, symlinks=True)
    world.offer(NEW)
    files = [path for path in world.shelf.folder.rglob("*") if path.is_file()]
    for seed in seeds:
        chance = random.Random(seed)
        place = PLACES[seed % len(PLACES)]
        path = chance.choice([each for each in files if place in f"{each.relative_to(world.shelf.folder)}"])
        fault = Fault(str(path.relative_to(world.shelf.folder)), data=mutated(path.read_bytes(), chance))
        world.server.faults = [fault]
        shutil.rmtree(world.path / "device")
        shutil.copytree(kept, world.path / "device", symlinks=True)
        try:
            world.client(self_test=None).update()
        except (UpdateError, VerificationError) as error:
            assert str(error) and "Traceback" not in str(error)
            assert all(letter.isprintable() or letter == "\n" for letter in str(error)), ascii(str(error))
        assert whole(world.client().current()).digest in (world.manifests[OLD].digest, world.manifests[NEW].digest)


def test_no_mutation_ends_in_a_traceback(world: World) -> None:
    mutations(world, range(10))
    recovers(world)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_no_mutation_ends_in_a_traceback_at_all(part: int, world: World) -> None:
    mutations(world, range(100 + 500 * part, 100 + 500 * (part + 1)))
    recovers(world)
