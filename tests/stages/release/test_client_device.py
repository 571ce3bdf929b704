"""What happens to a device: files rot, disks fill up, the client is killed at each of its changes; and the command.

After each a whole, verified version is in place, the old or the new one, and a plain update recovers.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError, UpdateError, VerificationError
from pipelines.project import Project
from pipelines.sealed import HEAD, TAIL, read_sealed, write_sealed
from stages.release.commands.fetch import fetch
from tests.stages.release.server import Server
from tests.stages.release.shelf import DEVICE
from tests.stages.release.world import NEW, OLD, World, few, recovers, refuses, whole


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


# What lies in the client's folder

ROT: dict[str, tuple[Callable[[Path, World], object], str]] = {
    "a byte of a file": (lambda at, world: flip(at / "decoder.onnx.data"), "repaired"),
    "a file is gone": (lambda at, world: (at / "tokenizer.json").unlink(), "repaired"),
    "a file is short": (lambda at, world: (at / "decoder.onnx.data").write_bytes(b"x"), "repaired"),
    "a file is a folder": (
        lambda at, world: ((at / "encoder.onnx").unlink(), (at / "encoder.onnx").mkdir()),
        "repaired",
    ),
    "the manifest": (lambda at, world: (at / "manifest.json").write_bytes(b"{}"), "repaired"),
    "the whole version": (lambda at, world: shutil.rmtree(at), "repaired"),
    "the pointer is gone": (lambda at, world: (world.path / "device/current").unlink(), "unchanged"),
    "the pointer leads nowhere": (lambda at, world: point(world.path / "device/current"), "unchanged"),
    "the pointer is a folder": (
        lambda at, world: (
            (world.path / "device/current").unlink(),
            (world.path / "device/current/x").mkdir(parents=True),
        ),
        "unchanged",
    ),
    "a copy of the state": (lambda at, world: (world.path / "device/state.json").write_bytes(b"{"), "unchanged"),
    "the other copy": (lambda at, world: (world.path / "device/state.copy.json").unlink(), "unchanged"),
    "the whole state": (
        lambda at, world: [path.write_bytes(b"") for path in (world.path / "device").glob("state*.json")],
        "unchanged",
    ),
    "a state in another shape": (lambda at, world: misshapen(world, current=[7], bad=["x"]), "unchanged"),
    "a state with another id": (lambda at, world: misshapen(world, id={"x": 1}, fallback=7), "unchanged"),
    "a state without end": (lambda at, world: endless(world), "unchanged"),
    "partial is a file": (lambda at, world: (world.path / "device/partial").write_bytes(b"x"), "unchanged"),
}


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\0\1\2")


def misshapen(world: World, **changes: Any) -> None:
    """Change both copies of the state, and seal them again."""
    for path in (world.path / "device").glob("state*.json"):
        write_sealed(path, {**(read_sealed(path) or {}), **changes})


def endless(world: World) -> None:
    body = b' "bad": ' + b"[" * 100_000
    for path in (world.path / "device").glob("state*.json"):
        path.write_bytes(HEAD + hashlib.sha256(body).hexdigest().encode() + TAIL + body)


def point(pointer: Path) -> None:
    pointer.unlink()
    pointer.symlink_to("versions/" + "0" * 64)


ROTTEN = (
    "a byte of a file",
    "the manifest",
    "the pointer leads nowhere",
    "the whole state",
    "a state in another shape",
)


@pytest.mark.parametrize(
    "alone", [pytest.param(True, id="alone", marks=pytest.mark.slow), pytest.param(False, id="with an older one")]
)
@pytest.mark.parametrize("case", few(ROT, *ROTTEN))
def test_what_rots_on_the_device_is_repaired(case: str, alone: bool, world: World) -> None:
    if not alone:
        world.update()
        world.offer(NEW)
    found = world.update()
    rot, status = ROT[case]
    world.server.requests.clear()
    rot(found.path, world)
    repaired = world.update()
    assert repaired.version == found.version
    assert repaired.status == status or (repaired.status == "new" and not alone)
    blobs = {line for line in world.server.requests if line.startswith("blobs/")}
    assert len(blobs) <= (0 if status == "unchanged" else 9 if case == "the whole version" else 1)
    if not alone:
        assert whole(world.client().go_back()).version == OLD
    fetched = world.update()
    assert fetched.status in ("unchanged", "held")


def test_what_a_killed_client_left_beside_places_goes(updated: World) -> None:
    device = updated.path / "device"
    (device / f".current.{'a' * 32}").symlink_to((device / "current").readlink())
    (device / f".state.json.{'b' * 32}").write_bytes(b"half")
    (device / "metadata/tmpabc").write_bytes(b"half")
    recovers(updated)
    assert not [path for path in device.rglob("*") if path.name.startswith((".", "tmp"))]


def test_a_rotten_version_is_left_where_the_network_is_gone(updated: World) -> None:
    updated.update()
    flip(updated.path / "device/current/decoder.onnx.data")
    updated.server.close()
    error = refuses(updated, UpdateError, "the last good version is in place")
    assert "decoder.onnx.data" in error.hint
    updated.server = Server(updated.shelf.folder)
    recovers(updated)


def test_rot_in_a_file_that_two_versions_share(updated: World) -> None:
    updated.update()
    name = "tokenizer.json"
    first, second = (updated.path / "device/versions" / updated.manifests[each].digest / name for each in (OLD, NEW))
    assert first.stat().st_ino == second.stat().st_ino
    second.write_bytes(b"{" + b" " * (second.stat().st_size - 1))
    assert updated.update().status == "repaired"
    assert whole(updated.client().go_back()).version == OLD


def test_a_last_good_version_that_is_damaged_is_not_gone_back_to(updated: World) -> None:
    updated.update()
    flip(updated.path / "device/versions" / updated.manifests[OLD].digest / "decoder.onnx.data")
    with pytest.raises(UpdateError, match="the last good version is damaged"):
        updated.client().go_back()
    assert whole(updated.client().current()).version == NEW


# Kills and full disks


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a fork of this process, which has no other threads; return the wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except (UpdateError, VerificationError):
            os._exit(1)
        except BaseException:
            os._exit(70)
        os._exit(0)
    return os.waitpid(child, 0)[1]


CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.symlink", "os.link", "os.rmdir", "os.truncate")


def killed_after(count: int, world: World) -> bool:
    """Update in a child that is killed at its change number `count` of the file system; say whether it got that far."""
    left = [count]

    def watch(event: str, words: tuple[Any, ...]) -> None:
        if event in CHANGES and (event != "open" or (isinstance(words[2], int) and words[2] & 3)):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    def work() -> None:
        sys.addaudithook(watch)
        world.client().update()

    return os.WIFSIGNALED(in_child(work))


@pytest.fixture
def still(tmp_path: Path) -> World:
    """A world without threads, which can be forked: the old version in place, the new one named, with a delta."""
    world = World(tmp_path, served=False)
    data = random.Random(5).randbytes(60_000)
    world.release("2.0.0", files={"decoder.onnx.data": data})
    world.release("2.1.0", files={"decoder.onnx.data": data[:30_000] + b"other" + data[30_005:], "new.bin": b"new"})
    world.shelf.add_deltas(world.path / "2.0.0", world.path / "2.1.0")
    for version in ("2.0.0", "2.1.0"):
        world.offer(version)
        if version == "2.0.0":
            assert world.update().version == version
    return world


def kills(world: World, counts: range) -> int:
    shutil.copytree(world.path / "device", world.path / "kept", symlinks=True)
    done = 0
    for count in counts:
        shutil.rmtree(world.path / "device")
        shutil.copytree(world.path / "kept", world.path / "device", symlinks=True)
        if not killed_after(count, world):
            break
        done += 1
        assert whole(world.path / "device/current").version in ("2.0.0", "2.1.0"), count  # as others see it
        assert whole(world.client().current()).version in ("2.0.0", "2.1.0"), count
        found = world.update()
        assert found.version == "2.1.0", count
        assert not [path for path in (world.path / "device").rglob(".*")], count
        assert whole(world.client().go_back()).version == "2.0.0", count
    return done


def test_a_kill_at_many_places(still: World) -> None:
    assert kills(still, range(3, 1000, 23)) > 2


@pytest.mark.slow
def test_a_kill_at_every_place(still: World) -> None:
    assert kills(still, range(1000)) > 40


@pytest.mark.parametrize("limit", few([0, 700, 20_000, 40_000], 700, 40_000))
def test_a_disk_that_takes_no_more(limit: int, still: World) -> None:
    """No file may grow beyond `limit` bytes, as where a disk or a quota is full."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            still.client().update()
        except UpdateError as error:
            if "the disk is full" not in str(error):
                os._exit(71)
            raise

    assert os.waitstatus_to_exitcode(in_child(work)) == 1
    assert whole(still.client().current()).version == "2.0.0"
    assert still.update().version == "2.1.0"


def test_a_disk_that_is_full(still: World) -> None:
    disk = still.path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tapeout-test", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting is refused here")
    try:
        client = still.client("disk/device")
        filler = disk / "filler"
        filler.write_bytes(b"x" * (1 << 20))
        with pytest.raises(UpdateError, match=r"needs 1\.\d MiB more there"):
            client.update()
        filler.unlink()
        assert client.update().version == "2.1.0"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# The command


def test_the_command(updated: World, capsys: pytest.CaptureFixture[str]) -> None:
    root = updated.path / "root.json"
    root.write_bytes(updated.shelf.first_root())
    project, to = Project(updated.path), str(updated.path / "device")
    words = [updated.server.url, "--to", to, "--device", DEVICE, "--channel", "stable", "--self-test", "off"]
    assert fetch([*words, "--root", str(root)], project) == 0
    said = capsys.readouterr().out
    assert (
        f"{DEVICE}: {NEW} (champion) is in place now" in said and "MiB saved" in said and "note: the self-test" in said
    )
    assert fetch([*words, "--json"], project) == 0
    assert '"status": "unchanged"' in capsys.readouterr().out
    assert fetch(["--to", to, "--status"], project) == 0
    assert f"{NEW} is in place" in (said := capsys.readouterr().out) and f"{OLD} is kept to go back to" in said
    assert fetch(["--to", to, "--confirm"], project) == 0
    assert fetch(["--to", to, "--go-back"], project) == 0
    capsys.readouterr()
    assert fetch(["--to", to, "--status", "--json"], project) == 0
    assert f'"version": "{OLD}"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--to"),
        (["--to", "x"], "URL, --device, --channel is missing"),
        (["u", "--to", "x", "--device", "d"], "--channel is missing"),
        (["u", "--to", "x", "--device", "d", "--channel", "c", "--root", "nowhere"], "--root nowhere cannot be read"),
        (["--to", "x", "--statsu"], "unrecognized arguments"),
    ],
)
def test_wrong_use(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        fetch(words, Project(tmp_path))
