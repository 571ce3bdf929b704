"""The update client against a real server: what it takes, from where, and what it keeps."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError, UpdateError, VerificationError
from stages.release.client import client as client_module
from stages.release.client.client import Client
from stages.release.client.downloading import Patience
from stages.release.client.installation import Installation
from stages.release.history.rollout import bucket
from stages.release.manifest import read
from tests.stages.release.bundles import make_bundle
from tests.stages.release.server import Fault
from tests.stages.release.shelf import DEVICE
from tests.stages.release.world import NEW, OLD, World, few, whole


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.server.close()


def test_a_device_gets_what_its_channel_says(world: World) -> None:
    first = world.update()
    assert (first.status, first.version, first.arm) == ("new", OLD, "champion")
    assert first.downloaded > 50_000 and first.saved == 0
    again = world.update(root=None)
    assert again.status == "unchanged" and again.downloaded < 20_000
    world.offer(NEW)
    second = world.update()
    assert (second.status, second.version) == ("new", NEW)
    assert second.saved > 0  # graphs, tokenizer and card are the same files
    fetched = [line for line in world.server.requests if line.startswith("blobs/")]
    assert len(fetched) == len(set(fetched)) == len(world.manifests[OLD].files) + 1
    assert len(world.tested) == 2 and world.tested[0].parent.name == "partial"
    names = {path.name for path in (world.path / "device/versions").iterdir()}
    assert names == {world.manifests[OLD].digest, world.manifests[NEW].digest}
    assert not list((world.path / "device").glob("partial/*"))


def test_older_versions_go_but_the_last_good_one(world: World) -> None:
    world.release("1.2.0", seed=2)
    for version in (OLD, NEW, "1.2.0"):
        world.offer(version)
        world.update()
    names = {path.name for path in (world.path / "device/versions").iterdir()}
    assert names == {world.manifests[NEW].digest, world.manifests["1.2.0"].digest}


def test_a_channel_that_goes_back_costs_nothing(world: World) -> None:
    for version in (OLD, NEW):
        world.offer(version)
        world.update()
    world.server.requests.clear()
    world.offer(OLD)
    updated = world.update()
    assert (updated.status, updated.version) == ("new", OLD) and len(world.tested) == 3
    assert not [line for line in world.server.requests if line.startswith(("blobs/", "deltas/"))]
    assert world.client().status()["fallback"]["version"] == NEW


@pytest.mark.parametrize("way", ["path", "file"])
def test_a_repository_in_a_folder(way: str, world: World) -> None:
    folder = world.path / "repository"
    assert world.update(url=str(folder) if way == "path" else folder.as_uri()).version == OLD
    assert world.server.requests == []


def test_another_scheme_is_refused(world: World) -> None:
    for url in ("ftp://example.org/x", "http://[::1"):
        with pytest.raises(ConfigError, match="no address of a repository"):
            world.client(url=url).update()


def test_the_first_time_needs_a_root(world: World) -> None:
    with pytest.raises(ConfigError, match="trusts no repository yet") as caught:
        world.client(root=None).update()
    assert "--root" in caught.value.hint
    with pytest.raises(ConfigError, match="trusted root metadata is none"):
        world.client(root=b"{}").update()
    assert world.update().version == OLD


def test_a_delta_is_taken_where_there_is_one(world: World) -> None:
    data = random.Random(5).randbytes(400_000)
    old = world.release("2.0.0", files={"decoder.onnx.data": data})
    new = world.release("2.1.0", files={"decoder.onnx.data": data[:200_000] + b"other" + data[200_005:]})
    world.shelf.add_deltas(world.path / "2.0.0", world.path / "2.1.0")
    world.offer("2.0.0")
    world.update()
    world.offer("2.1.0")
    updated = world.update()
    assert updated.bundle == new.digest != old.digest
    assert 0 < updated.deltas < 200_000 and updated.saved > 150_000 and updated.notes == ()
    assert world.blob("2.1.0") not in world.server.requests
    assert world.client("fresh").update().deltas == 0  # who has nothing to start from gets it whole


WRONG_DELTAS: dict[str, tuple[dict[str, Any], str]] = {
    "the index is for another bundle": ({"base": "0" * 64}, "another base"),
    "the index leads to another bundle": ({"to": "0" * 64}, "lead to"),
    "the file's base is another": ({"from": "0" * 64}, "another base than the file"),
    "a file that the bundle has not": ({"path": "../x"}, "another file than the new bundle has"),
    "a size that is none": ({"delta_size": "7"}, "in another kind"),
    "another size": ({"delta_size": 7}, "the signed metadata says 7"),
    "another digest": ({"delta": "1" * 64}, "is not there"),
    "a path for a digest": ({"delta": "../" * 20 + "etcx"}, "no sha256"),
    "another version": ({"delta_version": 2}, "expected 1"),
}


@pytest.mark.parametrize("case", few(WRONG_DELTAS, "the file's base is another", "another digest"))
def test_a_wrong_delta_costs_bytes_only(case: str, world: World) -> None:
    changes, said = WRONG_DELTAS[case]
    data = random.Random(5).randbytes(100_000)
    world.release("2.0.0", files={"decoder.onnx.data": data})
    world.release("2.1.0", files={"decoder.onnx.data": data[:50_000] + b"other" + data[50_005:]})
    world.shelf.add_deltas(world.path / "2.0.0", world.path / "2.1.0", **changes)
    world.offer("2.0.0")
    world.update()
    world.offer("2.1.0")
    updated = world.update()
    assert updated.version == "2.1.0" and updated.deltas == 0
    assert any(said in note and "whole" in note for note in updated.notes), updated.notes


def test_a_delta_of_another_file_is_found_out(world: World) -> None:
    """Its bytes have the sha256 that the signed index says, and make something else."""
    data = [random.Random(seed).randbytes(100_000) for seed in range(3)]
    for number, version in enumerate(("2.0.0", "2.1.0", "2.2.0")):
        world.release(version, files={"decoder.onnx.data": data[0][:90_000] + data[number][90_000:]})
    other = world.shelf.add_deltas(world.path / "2.0.0", world.path / "2.2.0")["files"][0]
    taken = {key: other[key] for key in ("delta", "delta_size")}
    world.shelf.add_deltas(world.path / "2.0.0", world.path / "2.1.0", **taken)
    world.offer("2.0.0")
    world.update()
    world.offer("2.1.0")
    updated = world.update()
    assert updated.version == "2.1.0" and updated.deltas == 0
    assert any("its delta cannot be used" in note for note in updated.notes)


def test_arms_by_bucket(world: World) -> None:
    half = [("bolder", world.manifests[NEW], [(0, 5000)])]
    world.offer(OLD, arms=half)
    ids = [f"device-{number}" for number in range(6)]
    found = {}
    for name in ids:
        updated = world.client(name, installation=name).update()
        found[name] = updated.arm, updated.version
    for name in ids:
        expected = ("bolder", NEW) if bucket(name, "salt") < 5000 else ("champion", OLD)
        assert found[name] == expected
    assert len(set(found.values())) == 2


def test_the_anonymous_id_is_random_and_stays(world: World) -> None:
    ids = []
    for folder in ("one", "two", "one"):
        client = world.client(folder)
        client.update()
        ids.append(client.status()["installation"])
    assert ids[0] == ids[2] != ids[1] and re.fullmatch(r"[0-9a-f]{32}", ids[0])
    with pytest.raises(ConfigError, match="letters, digits"):
        world.client(installation="a b").update()


def test_going_back_and_not_coming_again(world: World) -> None:
    client = world.client()
    world.update()
    with pytest.raises(UpdateError, match="no last good version"):
        client.go_back()
    world.offer(NEW)
    world.update()
    assert whole(client.go_back()).version == whole(client.current()).version == OLD
    held = world.update()
    assert (held.status, held.version) == ("held", OLD) and "is not taken: the app went back" in held.notes[0]
    assert "1.1.0" in str(held.notes) and len(client.status()["bad"]) == 1
    world.release("1.2.0", seed=2)
    world.offer("1.2.0")
    assert world.update().version == "1.2.0" and client.status()["bad"] == {}
    world.offer(NEW)  # named again after another: it may be tried again
    assert world.update().version == NEW


def test_a_confirmed_version_outlives_those_that_are_not(world: World) -> None:
    client = world.client()
    with pytest.raises(UpdateError, match="no bundle is in place"):
        client.confirm()
    world.update()
    assert client.confirm() == world.manifests[OLD].digest and client.status()["confirmed"]
    world.release("1.2.0", seed=2)
    for version in (NEW, "1.2.0"):
        world.offer(version)
        world.update()
    assert not client.status()["confirmed"]
    assert client.status()["fallback"]["version"] == OLD
    assert whole(client.go_back()).version == OLD


def test_a_failing_self_test_keeps_the_old_version(world: World) -> None:
    world.update()
    world.offer(NEW)

    def fails(folder: Path) -> str:
        raise ValueError("it answers 'no'")

    with pytest.raises(UpdateError, match=r"self-test failed.*it answers 'no'"):
        world.client(self_test=fails).update()
    assert whole(world.client().current()).version == OLD
    held = world.update()
    assert held.status == "held" and "self-test failed here" in held.notes[0]
    assert not list((world.path / "device").glob("partial/*"))
    world.offer(OLD)  # named another: what was bad is forgotten
    assert world.update().status == "unchanged" and world.client().status()["bad"] == {}


def test_an_arm_that_fails_gets_the_champion(world: World) -> None:
    world.update()
    everybody = [("bolder", world.manifests[NEW], [(0, 10_000)])]
    world.release("1.2.0", seed=2)
    world.offer("1.2.0", arms=everybody)

    def fails(folder: Path) -> str:
        raise ValueError("no")

    with pytest.raises(UpdateError):
        world.client(self_test=fails).update()
    assert (world.update().arm, world.update().version) == ("champion", "1.2.0")


def test_without_a_self_test_it_says_so(world: World) -> None:
    assert "skipped, as asked" in world.update(self_test=None).notes[0]


def test_a_revoked_bundle_is_not_installed(world: World) -> None:
    world.offer(OLD, revoked=[world.manifests[OLD]])
    with pytest.raises(UpdateError, match="was revoked"):
        world.client().update()
    assert world.client().current() is None
    everybody = [("bolder", world.manifests[NEW], [(0, 10_000)])]
    world.offer(OLD, arms=everybody, revoked=[world.manifests[NEW]])
    updated = world.update()
    assert (updated.version, updated.arm) == (OLD, "champion") and "was revoked" in updated.notes[0]


def test_a_revoked_bundle_in_place_is_left(world: World) -> None:
    world.update()
    world.offer(NEW)
    world.update()
    world.offer(NEW, revoked=[world.manifests[NEW]])
    updated = world.update()
    assert (updated.status, updated.version) == (
        "back",
        OLD,
    ) and "what was in place (1.1.0) was revoked" in updated.notes
    world.offer(NEW, revoked=[world.manifests[OLD]])
    updated = world.update()
    assert (updated.status, updated.version) == ("new", NEW)
    assert world.client().status()["fallback"] is None  # what was revoked is nothing to go back to


def test_a_revoked_bundle_is_not_gone_back_to(world: World) -> None:
    for version in (OLD, NEW):
        world.offer(version)
        world.update()
    world.offer(NEW, revoked=[world.manifests[OLD]])
    assert world.update().status == "unchanged"
    with pytest.raises(UpdateError, match="no last good version"):
        world.client().go_back()
    assert [path.name for path in (world.path / "device/versions").iterdir()] == [world.manifests[NEW].digest]


def test_a_revoked_bundle_stays_where_nothing_else_is(world: World) -> None:
    world.update()
    world.offer(OLD, revoked=[world.manifests[OLD]])
    with pytest.raises(UpdateError, match=r"nothing to install.*1\.0\.0.*was revoked"):
        world.client().update()


@pytest.mark.parametrize(
    ("asked", "said", "hint"),
    [
        ({"channel": "stabel"}, "there is no channel 'stabel'", "did you mean 'stable'? channels: beta, stable"),
        ({"channel": "../stable"}, "there is no channel", "channels: beta, stable"),
        ({"device": "pixel-9"}, "channel 'stable' has nothing for 'pixel-9'", "did you mean 'pixel-8'?"),
        ({"channel": "beta"}, "channel 'beta' has nothing for 'pixel-8'", "devices: none"),
    ],
)
def test_the_nearest_choice_is_named(asked: dict[str, str], said: str, hint: str, world: World) -> None:
    with pytest.raises(UpdateError, match=re.escape(said)) as caught:
        world.client(**asked).update()
    assert hint in caught.value.hint


def test_a_channel_without_a_release(world: World) -> None:
    world.offer(None)
    with pytest.raises(UpdateError, match="has no release for it yet"):
        world.client().update()
    world.offer(OLD)
    world.update()
    world.offer(None)
    assert world.update().status == "unchanged"


def test_the_arms_key_alone_cannot_name_what_the_release_key_did_not_sign(world: World) -> None:
    make_bundle(world.path / "evil", version=NEW, seed=66)
    evil = read(world.path / "evil")
    world.shelf.offer(evil)
    with pytest.raises(VerificationError, match="the release key signed"):
        world.client().update()
    make_bundle(world.path / "unknown", version="6.6.6")
    world.shelf.offer(read(world.path / "unknown"))
    with pytest.raises(VerificationError, match="signed no such bundle"):
        world.client().update()
    make_bundle(world.path / "foreign", version="7.0.0", device="iphone-15-pro")
    foreign = world.shelf.add(world.path / "foreign")
    world.shelf.add_target(f"bundles/{DEVICE}/7.0.0/manifest.json", foreign.data)
    world.shelf.offer(foreign)
    with pytest.raises(VerificationError, match=r"it is demo 7\.0\.0 for iphone-15-pro"):
        world.client().update()


ODD_DOCUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "a later version": ({"channel_version": 2}, "channel_version"),
    "a path for a version": ({"champion": {"version": "../..", "bundle": "0" * 64}}, "champion"),
    "another device": ({"device": "pixel-7"}, "it is for pixel-7 on stable"),
    "another kind": ({"revoked": "all"}, "revoked"),
    "half a range": ({"arms": [{"name": "a", "version": "1", "bundle": "0" * 64, "ranges": [[0]]}]}, "arms.0"),
}


@pytest.mark.parametrize("case", few(ODD_DOCUMENTS, "another device", "half a range"))
def test_a_channel_document_that_is_none(case: str, world: World) -> None:
    changes, said = ODD_DOCUMENTS[case]
    world.offer(OLD, changes=changes)
    with pytest.raises(VerificationError, match=re.escape(said)):
        world.client().update()


def test_a_bundle_larger_than_the_disk(world: World) -> None:
    folder = world.path / "huge"
    make_bundle(folder, version="9.0.0")
    manifest = read(folder)
    text = manifest.data.decode().replace('"size": 50000', f'"size": {1 << 40}')
    (folder / "manifest.json").write_text(text)
    world.shelf.add_target(f"bundles/{DEVICE}/9.0.0/manifest.json", text.encode())
    world.shelf.offer(read(folder))
    with pytest.raises(UpdateError, match=r"needs 1048577\.\d MiB more there, and [\d.]+ MiB are free"):
        world.client().update()
    assert not any(line.startswith("blobs/") for line in world.server.requests)


def test_two_clients_in_one_folder(world: World) -> None:
    place = Installation(world.path / "device")
    with place.locked(), pytest.raises(UpdateError, match="another client is at work there"):
        world.client().update()
    assert world.update().version == OLD


def test_progress_is_told(world: World) -> None:
    told: list[tuple[str, int, int]] = []
    world.update(progress=lambda path, came, size: told.append((path, came, size)))
    assert told[-1][1] == sum(file.size for file in world.manifests[OLD].files) <= told[-1][2]
    assert [came for _, came, _ in told] == sorted(came for _, came, _ in told)


def test_the_example_for_app_developers(world: World, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """What stands in the module's docstring, with this server's address."""
    lines = [line[4:] for line in (client_module.__doc__ or "").splitlines() if line.startswith("    ")]
    assert len([line for line in lines if line]) <= 10
    monkeypatch.chdir(world.path)
    Path("root.json").write_bytes(world.shelf.first_root())
    make_bundle(world.path / "empty", version="3.0.0", files={"model.json": b"{}"})
    monkeypatch.setattr(Client.__init__, "__defaults__", (None, None, world.works))
    exec("\n".join(lines).replace("https://models.example.com", world.server.url), {})
    assert f"new {OLD} " in capsys.readouterr().out
    assert world.client("models").status()["confirmed"]


def test_the_pointer_is_a_file_where_there_are_no_links(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.symlink

    def refuses(*words: Any, **options: Any) -> None:
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "symlink", refuses)
    world.update()
    assert (world.path / "device/current").read_text().strip() == world.manifests[OLD].digest
    world.offer(NEW)
    world.update()
    monkeypatch.setattr(os, "symlink", link)
    assert world.client().go_back().name == world.manifests[OLD].digest
    assert (world.path / "device/current").is_symlink()


@pytest.mark.slow
def test_looking_imports_nothing_heavy(world: World) -> None:
    import subprocess
    import sys

    world.update()
    code = (
        "import sys; from pathlib import Path; from stages.release.client.client import Client;"
        f"Client(Path({str(world.path / 'device')!r}), '', '', '').current();"
        "print([name for name in ('tuf', 'requests', 'jsonschema', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_server_does_not_hold_up(world: World) -> None:
    world.server.faults = [Fault("blobs/", pause=0.1, piece=10)]
    began = time.monotonic()
    with pytest.raises(UpdateError, match="fewer than 500 bytes a second"):
        world.client(patience=Patience(timeout=0.4, attempts=2, pause=0.01)).update()
    assert time.monotonic() - began < 3


def test_json_of_an_update(world: World) -> None:
    found = json.loads(json.dumps(world.update().as_json()))
    assert found["status"] == "new" and found["notes"] == [] and Path(found["path"]).is_dir()
