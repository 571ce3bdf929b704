from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError, StoreError, VerificationError
from stages.release.bundles.archive import open_archive
from stages.release.commands.publish import publish
from stages.release.commands.release import release
from stages.release.commands.repository import repository
from stages.release.deltas.delta import apply_delta
from stages.release.manifest import parse
from stages.release.signing.dsse import peek_envelope
from stages.release.signing.signing import sign_bundle
from stages.release.updates.expiry import seconds
from stages.release.updates.repository import alone
from tests.stages.release.projects import trust
from tests.stages.release.repositories import Kept, World, judge, make_world, released, tree

DEVICES = ("pixel-8", "iphone-15-pro")
WEIGHTS = random.Random(1).randbytes(60_000)
TUNED = b"".join([WEIGHTS[:30_000], random.Random(2).randbytes(500), WEIGHTS[30_500:]])


@pytest.fixture(scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """1.0.0 is published as stable's champion for two devices; 1.1.0 is released, and promoted nowhere."""
    world = make_world(tmp_path_factory.mktemp("world") / "project")
    keys = {name: str(world.key(name)) for name in ("root-a", "release", "online", "stable")}
    words = ["--root-key", keys["root-a"], "--targets-key", keys["release"], "--online-key", keys["online"]]
    repository(["init", str(world.directory), *words, "--channel", f"stable={keys['stable']}", "beta"], world.project)
    released(world.project, "1.0.0", *DEVICES, files={"decoder.onnx.data": WEIGHTS})
    world.release("promote", "1.0.0", "--channel", "stable", "--new-channel")
    world.publish()
    released(world.project, "1.1.0", *DEVICES, files={"decoder.onnx.data": TUNED})
    return world


@pytest.fixture(scope="module")
def _kept(_world: World) -> Kept:
    return Kept(_world.folder)


@pytest.fixture
def world(_world: World, _kept: Kept) -> Iterator[World]:
    yield _world
    _kept.restore()


def promoted(world: World) -> World:
    world.release("promote", "1.1.0", "--channel", "stable", "--share", "10")
    return world


def test_a_client_finds_what_the_history_says(world: World) -> None:
    document = judge(world).whole()
    bundle = document["champion"]["bundle"]
    assert document["champion"]["version"] == "1.0.0" and document["arms"] == []
    assert {
        file.path for file in parse(judge(world).target("bundles/pixel-8/1.0.0/manifest.json") or b"", "").files
    } > {"decoder.onnx.data"}
    done = promoted(world).publish()
    assert done.signed == ["targets", "channel-stable", "snapshot", "timestamp"]
    assert [title.split()[1] for title in done.added] == ["1.1.0", "1.1.0"]
    document = judge(world).whole()
    assert document["champion"]["bundle"] == bundle
    assert [(arm["version"], arm["ranges"]) for arm in document["arms"]] == [("1.1.0", [[0, 1000]])]


def test_signatures_and_provenance_are_target_files(world: World) -> None:
    archive = world.folder / "releases/1.0.0/pixel-8.tar"
    for name in ("provenance.json", "model.sig"):
        beside = archive.with_name(f"pixel-8.{name}")
        assert judge(world).target(f"bundles/pixel-8/1.0.0/{name}") == beside.read_bytes()


def test_what_releases_share_lies_there_once(world: World) -> None:
    before = set(tree(world.layout.blobs))
    promoted(world).publish()
    assert len(set(tree(world.layout.blobs)) - before) == 1  # the weights; both devices have the same here


def test_a_second_publication_writes_nothing_and_says_so(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    promoted(world).publish()
    before = tree(world.directory)
    assert run(world) == 0
    assert "nothing changed, nothing written" in capsys.readouterr().out
    assert run(world, "--json") == 0
    assert json.loads(capsys.readouterr().out)["changed"] is False
    assert tree(world.directory) == before


def run(world: World, *words: str, keys: tuple[str, ...] = ("release", "online", "stable")) -> int:
    return publish([str(world.directory), *words, *world.words(*keys)], world.project)


def test_a_delta_makes_the_new_file_of_the_old_one(world: World, tmp_path: Path) -> None:
    first = judge(world).document()["champion"]["bundle"]
    done = promoted(world).publish()
    arm = judge(world).document()["arms"][0]
    index = json.loads(judge(world).target(f"deltas/pixel-8/1.1.0/{first}.json") or b"")
    assert (index["delta_version"], index["from"], index["to"]) == (1, first, arm["bundle"])
    (delta,) = index["files"]
    assert delta["path"] == "decoder.onnx.data" and delta["delta_size"] < delta["size"] / 10
    assert done.delta_size >= delta["delta_size"]
    layout = world.layout
    out = tmp_path / "made"
    apply_delta(
        layout.delta(delta["delta"]),
        layout.blob(delta["from"]),
        out,
        expected_size=delta["size"],
        expected_sha256=delta["to"],
    )
    assert out.read_bytes() == TUNED


def test_deltas_come_from_few_releases_and_lead_back_from_a_bad_one(world: World) -> None:
    for number in range(2, 6):
        version = f"1.{number}.0"
        released(world.project, version, "pixel-8", files={"decoder.onnx.data": WEIGHTS[: 59_000 + number]})
        world.release("promote", version, "--channel", "stable")
        world.publish()
    targets = world.open().targets.signed.targets
    sources = [path for path in targets if path.startswith("deltas/pixel-8/1.5.0/")]
    assert len(sources) == 3
    assert {path.split("/")[2] for path in targets if path.startswith("deltas/pixel-8/")} == {"1.4.0", "1.5.0"}
    before = judge(world).document()["champion"]
    world.release("rollback", "--channel", "stable", "--device", "pixel-8")
    world.publish()
    now = judge(world).whole()["champion"]
    assert now["version"] == "1.4.0"
    assert f"deltas/pixel-8/1.4.0/{before['bundle']}.json" in world.open().targets.signed.targets
    assert not world.publish().signed


def test_an_emergency_rollback_takes_the_channel_key_and_the_online_key_alone(world: World) -> None:
    world.release("promote", "1.1.0", "--channel", "stable")
    world.publish()
    world.release("rollback", "--channel", "stable")
    assert world.publish("online", "stable").signed == ["channel-stable", "snapshot", "timestamp"]
    assert judge(world).whole()["champion"]["version"] == "1.0.0"


def test_a_retired_release_is_revoked_and_goes(world: World) -> None:
    world.release("promote", "1.1.0", "--channel", "stable")
    world.publish()
    gone = judge(world).document()["champion"]["bundle"]
    world.release("rollback", "--channel", "stable")
    world.release("retire", "1.1.0")
    done = world.publish()
    assert "bundles/pixel-8/1.1.0/manifest.json" in done.removed
    document = judge(world).whole()
    assert document["revoked"] == [gone] and document["champion"]["version"] == "1.0.0"
    targets = world.open().targets.signed.targets
    assert not [path for path in targets if "/1.1.0/" in path]
    assert f"deltas/pixel-8/1.0.0/{gone}.json" in targets  # the way out for who has it
    assert not world.publish().signed


def test_pruning_removes_what_nothing_leads_to_and_keeps_the_state_before(world: World) -> None:
    world.release("promote", "1.1.0", "--channel", "stable")
    world.publish()
    only = world.open().layout.blob(file_of(world, "1.1.0"))
    reader = judge(world, "slow")
    updater = reader.refresh()  # has read the metadata, and nothing else yet
    world.release("rollback", "--channel", "stable")
    world.release("retire", "1.1.0")
    world.publish(prune=True)
    reader.check_bundle(updater, "pixel-8", *(updater_champion(reader, updater)))
    assert only.is_file()
    (world.layout.blobs / ".left.0123456789abcdef0123456789abcdef").write_bytes(b"by a killed process")
    (world.layout.blobs / "README").write_bytes(b"somebody's own")
    repository(["refresh", str(world.directory), *world.words("online")], world.project)
    done = world.publish(prune=True)
    assert done.pruned[0] > 3 and not only.exists()
    assert not world.layout.blobs.joinpath(".left.0123456789abcdef0123456789abcdef").exists()
    assert world.layout.blobs.joinpath("README").exists()
    assert judge(world).whole()["champion"]["version"] == "1.0.0"
    assert world.publish(prune=True).pruned == (0, 0)


def file_of(world: World, version: str) -> str:
    data = judge(world, f"file-{version}").target(f"bundles/pixel-8/{version}/manifest.json")
    return next(file.sha256 for file in parse(data or b"", "").files if file.path == "decoder.onnx.data")


def updater_champion(reader: Any, updater: Any) -> tuple[str, str]:
    champion = json.loads(reader.target("channels/stable/pixel-8.json", updater))["champion"]
    return champion["version"], champion["bundle"]


@pytest.mark.parametrize(
    "keys, expected",
    [
        (("online", "stable"), "'targets' 1 of release.key ("),
        (("release", "stable"), "'snapshot' 1 of online ("),
        (("release", "online"), "'channel-stable' 1 of stable ("),
        (("stranger",), "'targets' 1 of release.key ("),
    ],
)
def test_a_missing_key_is_named_before_anything_is_written(world: World, keys: tuple[str, ...], expected: str) -> None:
    promoted(world)
    before = tree(world.directory)
    with pytest.raises(ConfigError) as caught:
        run(world, keys=keys)
    assert expected in str(caught.value)
    assert tree(world.directory) == before


def test_a_history_that_lost_its_end_is_refused(world: World) -> None:
    path = world.folder / "releases/history.jsonl"
    promoted(world).publish()
    before, lines = tree(world.directory), path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(VerificationError, match="its end is missing"):
        run(world)
    assert tree(world.directory) == before


def test_another_history_is_refused(world: World) -> None:
    other = world.copy(world.folder.with_name("other"))
    promoted(world).publish()
    other.release("promote", "1.1.0", "--channel", "stable")
    other.release("rollback", "--channel", "stable")
    shutil.rmtree(other.directory)
    shutil.copytree(world.directory, other.directory)
    with pytest.raises(VerificationError, match="published from another history"):
        run(other)


def test_a_history_that_was_given_up_for_another_is_published_when_asked_for(world: World) -> None:
    promoted(world).publish()
    (world.folder / "releases/history.jsonl").unlink()
    for version in ("1.0.0", "1.1.0"):
        shutil.rmtree(world.folder / "releases" / version)
    released(world.project, "1.0.0", *DEVICES, files={"decoder.onnx.data": WEIGHTS})
    world.release("promote", "1.0.0", "--channel", "stable", "--new-channel")
    with pytest.raises(VerificationError):
        run(world)
    assert run(world, "--another-history") == 0
    assert judge(world).whole()["arms"] == []
    assert not world.publish().signed


def by_another(world: World, *words: str) -> str:
    """Have somebody who can write to git trust a key, and decide something with it; return the key's id."""
    trust(world.project, world.key("stranger"))
    assert release([*words, *world.words("stranger")], world.project) == 0
    return world.keys("stranger")[0].public.keyid


def test_who_can_write_to_git_cannot_decide_what_is_published(world: World) -> None:
    keyid = by_another(world, "promote", "1.1.0", "--channel", "stable")
    world.release("promote", "1.1.0", "--channel", "beta", "--new-channel")  # an honest entry vouches for that one
    before = tree(world.directory)
    with pytest.raises(VerificationError, match="which this update repository does not know") as caught:
        run(world)
    assert f"entry 4 (promote 1.1.0) is signed by the key {keyid} (releases/keys/stranger.pub)" in caught.value.message
    assert "--trusted releases/keys/stranger.pub" in caught.value.hint
    assert tree(world.directory) == before


def test_a_new_key_is_accepted_by_name_until_that_is_published(world: World) -> None:
    by_another(world, "promote", "1.1.0", "--channel", "stable")
    assert run(world, "--trusted", str(world.folder / "releases/keys/stranger.pub")) == 0
    assert judge(world).whole()["champion"]["version"] == "1.1.0"
    world.release("rollback", "--channel", "stable")
    assert run(world) == 0
    assert judge(world).whole()["champion"]["version"] == "1.0.0"


def test_a_key_that_the_repository_has_for_a_channel_is_known(world: World) -> None:
    trust(world.project, world.key("stable"))
    assert release(["promote", "1.1.0", "--channel", "stable", *world.words("stable")], world.project) == 0
    assert run(world) == 0
    assert judge(world).whole()["champion"]["version"] == "1.1.0"


def test_the_online_key_decides_nothing(world: World) -> None:
    trust(world.project, world.key("online"))
    assert release(["promote", "1.1.0", "--channel", "stable", *world.words("online")], world.project) == 0
    with pytest.raises(VerificationError, match="which this update repository does not know"):
        run(world)


def test_before_the_first_publication_the_keys_that_publish_are_known(world: World) -> None:
    shutil.rmtree(world.directory)
    words = ["--root-key", str(world.key("root-a")), "--channel", "stable", "beta"]
    repository(["init", str(world.directory), *words], world.project)
    with pytest.raises(VerificationError, match=r"entry 1 \(create 1.0.0\) is signed by the key"):
        run(world, keys=("root-a",))
    assert run(world, "--trusted", str(world.folder / "releases/keys/release.key.pub"), keys=("root-a",)) == 0
    world.release("promote", "1.1.0", "--channel", "stable")
    with pytest.raises(VerificationError, match=r"entry 4 \(promote 1.1.0\) is signed by the key"):
        run(world, keys=("root-a",))


def test_signatures_that_were_made_anew_are_published(world: World) -> None:
    archive = world.folder / "releases/1.0.0/pixel-8.tar"
    path = "bundles/pixel-8/1.0.0/model.sig"
    before = judge(world).target(path)
    statement = json.loads(peek_envelope(archive.with_name("pixel-8.provenance.json").read_bytes(), "it"))
    sign_bundle(archive, world.keys("stranger"), statement)
    trusted = [key.public for key in world.keys("release", "stranger")]
    assert not world.publish("online", "stable", trusted=trusted).signed  # another time, with the release key
    assert world.publish(trusted=trusted).signed == ["targets", "snapshot", "timestamp"]
    assert judge(world).target(path) not in (None, before)
    assert not world.publish(trusted=trusted).signed
    judge(world).whole()


@pytest.mark.parametrize(
    "name, change, expected",
    [
        ("pixel-8.tar", lambda data: data.replace(WEIGHTS[500:600], bytes(100)), "decoder.onnx.data"),
        ("pixel-8.tar", lambda data: data[:5000], "truncated"),
        ("pixel-8.tar", lambda data: data.replace(b"1.1.0", b"1.1.1", 1), "pixel-8"),
        ("pixel-8.model.sig", lambda data: data.replace(b'"', b"'", 4), "pixel-8.model.sig"),
        ("pixel-8.provenance.json", lambda data: data[:-30] + b"}", "pixel-8.provenance.json"),
    ],
)
def test_a_damaged_release_is_not_published(
    world: World, name: str, change: Callable[[bytes], bytes], expected: str
) -> None:
    promoted(world)
    path, before = world.folder / "releases/1.1.0" / name, tree(world.layout.metadata)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(VerificationError) as caught:
        run(world)
    assert expected in str(caught.value)
    assert tree(world.layout.metadata) == before
    assert judge(world).whole()["arms"] == []


def test_a_release_under_another_version_is_not_published(world: World) -> None:
    promoted(world)
    for path in (world.folder / "releases/1.0.0").iterdir():
        shutil.copy(path, world.folder / "releases/1.1.0")
    with pytest.raises(VerificationError, match="and the history says"):
        run(world)


def test_a_release_whose_provenance_was_removed_is_not_published(world: World) -> None:
    promoted(world)
    (world.folder / "releases/1.1.0/pixel-8.provenance.json").unlink()
    before = tree(world.layout.metadata)
    with pytest.raises(VerificationError, match="it has no provenance"):
        run(world)
    assert tree(world.layout.metadata) == before


@pytest.mark.parametrize(
    "name, expected",
    [("pixel-8.tar", "it was replaced after it was verified"), ("pixel-8.provenance.json", "it is the provenance of")],
)
def test_what_is_swapped_between_check_and_reading_is_not_published(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    promoted(world)
    before = tree(world.layout.metadata)

    def swapping(path: Path) -> Any:
        if path.name == "pixel-8.tar":
            shutil.copy(world.folder / "releases/1.0.0" / name, world.folder / "releases/1.1.0" / name)
        return open_archive(path)

    monkeypatch.setattr("stages.release.updates.adding.open_archive", swapping)
    with pytest.raises(VerificationError, match=expected):
        run(world)
    assert tree(world.layout.metadata) == before


def test_a_missing_archive_is_named_with_its_digest(world: World) -> None:
    promoted(world)
    archive = world.folder / "releases/1.1.0/pixel-8.tar"
    archive.unlink()
    with pytest.raises(ConfigError, match="is missing, and the repository lacks") as caught:
        run(world)
    assert "its sha256 is" in caught.value.hint


def test_a_published_release_needs_its_archive_no_more(world: World) -> None:
    shutil.rmtree(world.folder / "releases/1.0.0")
    promoted(world).publish()
    assert judge(world).whole()["champion"]["version"] == "1.0.0"


def test_only_trusted_signatures_are_published(world: World) -> None:
    promoted(world)
    stranger = [key.public for key in world.keys("stranger")]
    with pytest.raises(VerificationError, match="signed by no key that is trusted"):
        world.publish(trusted=stranger)


def test_a_channel_without_a_role_is_said(world: World) -> None:
    world.release("promote", "1.1.0", "--channel", "canary", "--new-channel")
    with pytest.raises(ConfigError, match="has no role for it") as caught:
        run(world)
    words = ["channel", str(world.directory), "canary", *world.words("release", "online")]
    assert "repository channel" in caught.value.hint and repository(words, world.project) == 0
    world.publish()
    assert judge(world).whole("canary")["champion"]["version"] == "1.1.0"
    assert judge(world).whole("stable")["champion"]["version"] == "1.0.0"


@pytest.mark.parametrize("kind", ["lost", "changed"])
def test_blobs_that_were_lost_or_damaged_are_mended(
    world: World, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    blob = world.layout.blob(file_of(world, "1.0.0"))
    whole = blob.read_bytes()
    if kind == "lost":
        blob.unlink()
    else:
        blob.write_bytes(bytes(len(whole)))
        assert run(world) == 0  # sizes alone do not show it
        assert "nothing changed" in capsys.readouterr().out
    metadata = tree(world.layout.metadata)
    assert run(world, "--check") == 0
    assert "mended   demo 1.0.0 for pixel-8" in capsys.readouterr().out
    assert blob.read_bytes() == whole
    assert tree(world.layout.metadata) == metadata
    judge(world).whole()


def test_target_files_that_were_lost_come_back(world: World) -> None:
    before = tree(world.layout.targets)
    shutil.rmtree(world.layout.targets)
    world.publish()
    assert tree(world.layout.targets) == before
    judge(world).whole()
    assert not world.publish().signed


def test_deltas_that_were_lost_are_made_again(world: World) -> None:
    promoted(world).publish()
    before = tree(world.layout.deltas)
    shutil.rmtree(world.layout.deltas)
    assert world.publish().deltas == 4
    assert tree(world.layout.deltas) == before
    judge(world).whole()


def test_roles_are_signed_anew_in_time_by_whose_key_is_here(world: World) -> None:
    later = seconds() + timedelta(days=80)
    done = world.publish("online", "stable", now=later)
    assert done.signed == ["channel-stable", "snapshot", "timestamp"]
    assert [note.split("'")[1] for note in done.notes] == ["targets", "channel-beta"]


def test_one_publisher_at_a_time(world: World) -> None:
    promoted(world)
    with alone(world.directory), pytest.raises(StoreError, match="another process writes"):
        world.publish(patience=0.05)


# A process that is killed: at its n-th rename, since each file appears by one, or at any moment.


def killed(world: World, arm: Callable[[], None], patience: float | None = None) -> bool:
    """Publish in a process that `arm` has made ready to die; say whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            arm()
            world.publish()
            os._exit(0)
        finally:
            os._exit(1)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def at_rename(name: str = "", number: int = 0) -> Callable[[], None]:
    """name: a part of the path that is about to appear. number: of such renames that are let through."""

    def arm() -> None:
        left = [number]

        def hook(event: str, arguments: Any) -> None:
            if event == "os.rename" and name in str(arguments[1]):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return arm


def survives(world: World, kill: Callable[[], bool]) -> bool:
    """Kill a publication of a changed history, look, and publish again; say whether it was killed."""
    promoted(world)
    reader = judge(world)
    before = reader.whole()
    was = kill()
    seen = reader.whole()
    assert seen == before if not seen["arms"] else was is False or seen["arms"][0]["version"] == "1.1.0"
    again = world.publish()
    assert reader.whole()["arms"][0]["version"] == "1.1.0"
    assert judge(world, "newcomer").whole()["arms"][0]["version"] == "1.1.0"
    assert again.signed or seen["arms"]
    assert not world.publish().signed
    return was


@pytest.mark.parametrize("name", ["/deltas/", ".targets.json", "timestamp.json"])
def test_killed_before_a_file_appears(world: World, name: str) -> None:
    assert survives(world, lambda: killed(world, at_rename(name)))


@pytest.mark.slow
def test_killed_at_every_rename(_world: World, tmp_path: Path) -> None:
    number, alive = 0, True
    while alive:
        world = _world.copy(tmp_path / str(number) / "project")
        hook = at_rename(number=number)
        alive = survives(world, lambda world=world, hook=hook: killed(world, hook))  # type: ignore[misc]
        number += 1
    assert number > 20


@pytest.mark.slow
def test_killed_at_any_moment(_world: World, tmp_path: Path) -> None:
    draw = random.Random(7)
    times = 0
    for number in range(60):
        world = _world.copy(tmp_path / str(number) / "project")
        wait = draw.uniform(0, 0.3)
        times += survives(world, lambda world=world, wait=wait: killed(world, lambda: None, wait))  # type: ignore[misc]
    assert times > 20


@pytest.mark.slow
def test_readers_during_a_publication_see_whole_states(world: World) -> None:
    promoted(world)
    seen = set()
    child = os.fork()
    if child == 0:
        try:
            time.sleep(0.05)
            world.publish()
            os._exit(0)
        finally:
            os._exit(1)
    reader = judge(world)
    for number in range(200):
        seen.add(len(judge(world, f"reader-{number}").whole()["arms"]))
        seen.add(len(reader.whole()["arms"]))
        if os.waitpid(child, os.WNOHANG)[0]:
            break
    seen.add(len(reader.whole()["arms"]))
    assert seen == {0, 1}
