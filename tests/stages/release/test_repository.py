from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import RepositoryError

from pipelines.errors import ConfigError, StoreError, TapeoutError
from stages.release.commands.repository import repository
from stages.release.signing.keys import load_public_key
from stages.release.updates.creation import Founding, create
from stages.release.updates.expiry import DAYS, seconds
from stages.release.updates.overview import overview
from stages.release.updates.repository import alone, commit, refresh
from tests.stages.release.repositories import Kept, World, judge, make_world, tree


@pytest.fixture(scope="module")
def _keys(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world") / "project")


@pytest.fixture(scope="module")
def _bare(_keys: World) -> Kept:
    return Kept(_keys.folder)


@pytest.fixture
def world(_keys: World, _bare: Kept) -> Iterator[World]:
    """Keys, and no repository yet."""
    yield _keys
    _bare.restore()


@pytest.fixture
def founded(world: World) -> World:
    """Root keys of two people, both needed; a release key, an online key, and a key for the channel stable."""
    assert run(world, "init", "--threshold", "2", "--channel", f"stable={world.key('stable')}", *roots(world)) == 0
    return world


def roots(world: World) -> list[str]:
    keys = {name: str(world.key(name)) for name in ("root-a", "root-b", "release", "online")}
    return [
        *("--root-key", keys["root-a"], keys["root-b"]),
        *("--targets-key", keys["release"], "--online-key", keys["online"]),
    ]


def run(world: World, action: str, *words: str) -> int:
    return repository([action, str(world.directory), *words], world.project)


def refusal(world: World, action: str, *words: str) -> str:
    with pytest.raises(TapeoutError) as caught:
        run(world, action, *words)
    return str(caught.value)


def status(world: World, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    capsys.readouterr()
    code = run(world, "status", "--json")
    return code, json.loads(capsys.readouterr().out)


def test_a_fresh_repository_is_good_for_a_client_and_holds_no_private_key(founded: World) -> None:
    updater = judge(founded).refresh()
    assert updater.get_targetinfo("channels/stable/pixel-8.json") is None
    found = founded.open()
    assert found.roles == ["root", "targets", "snapshot", "timestamp", "channel-stable"]
    assert found.root.roles["root"].threshold == 2
    stable = found.targets.signed.delegations.roles["channel-stable"]
    assert (stable.paths, stable.terminating) == (["channels/stable/*"], True)
    assert found.timestamp.signed.unrecognized_fields["x-tapeout-issued"].endswith("Z")
    assert not any(b"PRIVATE" in data for data in tree(founded.directory).values())
    ids = {role: found.delegator(role).get_delegated_role(role).keyids for role in found.roles}
    assert len({tuple(each) for each in ids.values()}) == 4  # snapshot and timestamp share the online key


def test_one_key_does_everything_and_that_is_said(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, "init", "--key", str(world.key("release")), "--channel", "stable") == 0
    assert "one key does everything" in capsys.readouterr().out
    judge(world).refresh()


def test_life_is_written_down_once_and_can_be_another(world: World) -> None:
    run(world, "init", *roots(world), "--expires", "timestamp=3", "channels=30", "--channel", "stable")
    found, now = world.open(), seconds()
    days = {role: round((found.metadata_of(role).signed.expires - now) / timedelta(days=1)) for role in found.roles}
    kept = {role: DAYS[role] for role in ("root", "targets", "snapshot")}
    assert days == {**kept, "timestamp": 3, "channel-stable": 30}


def test_the_same_keys_at_the_same_moment_give_the_same_bytes(world: World) -> None:
    moment = seconds()
    found_at(world, moment)
    first = tree(world.directory)
    shutil.rmtree(world.directory)
    (world.directory / ".metadata.0123").mkdir(parents=True)  # by one that was killed
    found_at(world, moment)
    assert tree(world.directory) == first


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--threshold", "3"], "there are 2 root keys"),
        (["--threshold", "0"], "there are 2 root keys"),
        (["--expires", "timestam=3"], "did you mean 'timestamp'?"),
        (["--expires", "timestamp=0"], "from 1 to"),
        (["--expires", "timestamp=x"], "from 1 to"),
        (["--channel", "a/b"], "a name holds at most 63"),
        (["--channel", "*"], "a name holds at most 63"),
        (["--channel", "stable=nowhere"], "nowhere"),
        (["--root-kye", "x"], "did you mean '--root-key'?"),
    ],
)
def test_a_wrong_init_says_so_and_writes_nothing(world: World, words: list[str], expected: str) -> None:
    assert expected in refusal(world, "init", *roots(world), *words)
    assert not world.layout.metadata.exists()


def test_a_root_key_whose_holder_is_not_here_is_named_but_does_not_sign(world: World) -> None:
    words = ["--root-key", str(world.key("root-a")), f"{world.key('root-b')}.pub"]
    assert "root-b" in refusal(world, "init", *words, "--threshold", "2")
    assert run(world, "init", *words, "--threshold", "1") == 0
    assert len(world.open().root.roles["root"].keyids) == 2
    assert "exists" in refusal(world, "init", *words) or "already" in refusal(world, "init", *words)


def test_refresh_signs_snapshot_and_timestamp_and_clients_follow(founded: World) -> None:
    client, before = judge(founded), founded.open()
    client.refresh()
    assert run(founded, "refresh", *founded.words("online")) == 0
    after = founded.open()
    assert (after.timestamp.signed.version, after.snapshot.signed.version) == (2, 2)
    assert after.targets.signed == before.targets.signed
    assert client.refresh()._trusted_set.timestamp.version == 2
    assert run(founded, "refresh", "--all", *founded.words("online", "release", "stable")) == 0
    assert founded.open().targets.signed.version == founded.open().channels["stable"].signed.version == 2
    client.refresh()


def test_refresh_signs_what_has_spent_half_of_its_life(founded: World) -> None:
    later = seconds() + timedelta(days=50)
    _, roles = refresh(founded.open(), founded.keys("online", "release"), later)
    assert roles == ["targets", "snapshot", "timestamp"]  # the channel's key is not here


@pytest.mark.parametrize(
    "action, words, expected",
    [
        ("refresh", ["release"], "'snapshot' needs 1 signature: 1 more by online ("),
        ("channel", ["online", "stable"], "takes the key of the role 'targets': one of release.key ("),
        ("channel", ["release"], "'snapshot' needs 1 signature: 1 more by online ("),
    ],
)
def test_a_missing_key_is_named_and_nothing_is_written(
    founded: World, action: str, words: list[str], expected: str
) -> None:
    before = tree(founded.directory)
    name = ["beta"] if action == "channel" else []
    assert expected in refusal(founded, action, *name, *founded.words(*words))
    assert tree(founded.directory) == before


@pytest.mark.parametrize("role, needs", [("online", "online"), ("snapshot", "online"), ("targets", "release")])
@pytest.mark.parametrize("old", [True, False])
def test_a_role_gets_another_key(founded: World, role: str, needs: str, old: bool) -> None:
    """old: the key that is replaced is here, too; then no client ever sees a state that it refuses."""
    client = judge(founded)
    client.refresh()
    signers = ["root-a", "root-b", *(["online"] if role == "targets" or role == "snapshot" else [])]
    new = str(founded.key("stranger"))
    assert run(founded, "rotate", role, "--new", new, *founded.words(*signers, *([needs] if old else []))) == 0
    assert founded.open().refused == ()
    assert founded.open().root.version == 2
    assert client.refresh()._trusted_set.root.version == 2
    judge(founded, "newcomer").refresh()
    if role == "online":
        assert "needs 1 signature: 1 more by stranger" in refusal(founded, "refresh", *founded.words("online"))


def test_clients_follow_through_two_rotations_of_root(founded: World) -> None:
    client = judge(founded)
    client.refresh()
    words = founded.words("root-a", "root-b")
    swap = ["--new", str(founded.key("stranger")), "--old", f"{founded.key('root-b')}.pub"]
    assert run(founded, "rotate", "root", *swap, *words) == 0
    assert run(founded, "rotate", "root", "--threshold", "1", *founded.words("root-a", "stranger")) == 0
    assert client.refresh()._trusted_set.root.version == 3
    assert judge(founded, "newcomer").refresh()._trusted_set.root.version == 3
    forged = copy.deepcopy(founded.open().roots[-1])
    forged.signed.version = 4
    forged.sign(founded.keys("root-b")[0].tuf_signer())  # the key that left
    founded.layout.versioned("root", 4).write_bytes(forged.to_bytes())
    with pytest.raises(RepositoryError):
        client.refresh()
    assert "not signed by enough root keys" in refusal(founded, "status")


def key_id(world: World, name: str) -> str:
    return load_public_key(Path(f"{world.key(name)}.pub")).keyid


def test_a_root_waits_for_the_signatures_of_others(founded: World, capsys: pytest.CaptureFixture[str]) -> None:
    live = tree(founded.layout.metadata)
    new = f"{founded.key('stranger')}.pub"
    assert run(founded, "rotate", "targets", "--new", new, *founded.words("root-a")) == 0
    said = capsys.readouterr().out
    assert "nothing is live yet" in said and "1 more of root-b (" in said
    assert tree(founded.layout.metadata) == live
    assert status(founded, capsys)[1]["staged"]["version"] == 2
    assert "waits for signatures already" in refusal(founded, "rotate", "root", *founded.words("root-a"))
    assert "none of these keys is asked" in refusal(founded, "sign", *founded.words("online"))
    # signed by old and new release key beforehand, nobody is shut out when the root becomes live
    assert run(founded, "refresh", "--all", *founded.words("online", "release", "stranger")) == 0
    capsys.readouterr()
    assert run(founded, "sign", *founded.words("root-b")) == 0
    said = capsys.readouterr().out
    assert "targets: + stranger (" in said and "live, with root 2" in said and "refuse" not in said
    assert not list(founded.layout.staging.iterdir())
    judge(founded).refresh()
    assert "holds no root that waits" in refusal(founded, "sign", *founded.words("root-b"))


def test_a_root_that_is_live_before_its_keys_have_signed_says_what_is_missing(
    founded: World, capsys: pytest.CaptureFixture[str]
) -> None:
    client = judge(founded)
    client.refresh()
    new = f"{founded.key('stranger')}.pub"
    assert run(founded, "rotate", "online", "--new", new, *founded.words("root-a", "root-b")) == 0
    assert "clients refuse updates until the new keys have signed timestamp, snapshot" in capsys.readouterr().out
    with pytest.raises(RepositoryError):
        client.refresh()
    code, found = status(founded, capsys)
    assert code == 1
    assert [role["state"] for role in found["roles"]] == ["good", "good", "refused", "refused", "good"]
    assert run(founded, "refresh", *founded.words("stranger")) == 0
    client.refresh()
    assert status(founded, capsys)[0] == 0


def test_renewing_root_changes_its_expiry_alone(founded: World) -> None:
    before = founded.open().root
    assert run(founded, "rotate", "root", "--expires", "root=30", *founded.words("root-a", "root-b")) == 0
    after = founded.open().root
    assert (after.version, after.keys, after.roles) == (2, before.keys, before.roles)
    assert after.expires - seconds() <= timedelta(days=30)
    judge(founded).refresh()


@pytest.mark.parametrize(
    "words, expected",
    [
        (["rot"], "did you mean 'root'?"),
        (["channel-beta"], "did you mean 'channel-stable'?"),
        (["root", "--new", "NEW"], "say which one is replaced"),
        (["root", "--threshold", "3"], "would have 2 keys and need 3"),
        (["root", "--old", "ROOT-B"], "would have 1 key and need 2"),
        (["targets", "--old", "0123456789"], "its keys: release.key ("),
    ],
)
def test_a_wrong_rotation_says_so_and_writes_nothing(founded: World, words: list[str], expected: str) -> None:
    before = tree(founded.directory)
    known = {"NEW": str(founded.key("stranger")), "ROOT-B": key_id(founded, "root-b")}
    words = [known.get(word, word) for word in words]
    assert expected in refusal(founded, "rotate", *words, *founded.words("root-a", "root-b"))
    assert tree(founded.directory) == before


def test_a_channel_gets_another_key_and_the_old_one_signs_nothing_more(founded: World) -> None:
    client = judge(founded)
    client.document()
    new = str(founded.key("stranger"))
    assert "needs 1 signature" in refusal(founded, "rotate", "channel-stable", "--new", new, *founded.words("online"))
    assert run(founded, "rotate", "channel-stable", "--new", new, *founded.words("online", "release")) == 0
    client.document()
    channels = {"stable": founded.open().channels["stable"].signed}
    with pytest.raises(ConfigError, match="1 more by stranger"):
        commit(founded.open(), founded.keys("online", "stable"), seconds(), channels=channels)


def test_a_channel_is_added(founded: World) -> None:
    client = judge(founded)
    client.refresh()
    own = ["--channel-key", str(founded.key("stranger"))]
    assert run(founded, "channel", "beta", *own, *founded.words("release", "online")) == 0
    assert run(founded, "channel", "nightly", *founded.words("release", "online")) == 0
    assert client.document("beta") is client.document("nightly") is None
    roles = founded.open().targets.signed.delegations.roles
    assert roles["channel-beta"].keyids == [key_id(founded, "stranger")]
    assert roles["channel-nightly"].keyids == [key_id(founded, "release")]
    assert "already" in refusal(founded, "channel", "beta", *founded.words("release", "online"))


def test_status_warns_before_something_expires_and_fails_after(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    found_at(world, seconds() - timedelta(days=6))
    code, found = status(world, capsys)
    states = {role["role"]: role["state"] for role in found["roles"]}
    assert (code, found["usable"]) == (1, False)
    assert states == {"root": "good", "targets": "good", "snapshot": "soon", "timestamp": "expired"}
    assert run(world, "status") == 1
    said = capsys.readouterr().out
    assert "'timestamp' has expired: clients refuse updates" in said and "'snapshot' expires soon" in said
    assert run(world, "refresh", *world.words("online")) == 0
    assert status(world, capsys)[0] == 0


def found_at(world: World, moment: datetime, **days: int) -> None:
    """A repository without channels that was made at that moment."""
    root, release, online = world.keys("root-a", "release", "online")
    world.directory.mkdir(exist_ok=True)
    create(world.directory, Founding([root.public], 1, release, online, {}, [root], days), moment)


def test_only_one_process_writes(founded: World) -> None:
    with alone(founded.directory), pytest.raises(StoreError, match="another process"), alone(founded.directory, 0.05):
        pass
    with alone(founded.directory, 0.05):  # it ends with the process that had it
        pass


def test_what_a_killed_process_left_is_never_used_again(founded: World) -> None:
    founded.layout.versioned("snapshot", 2).write_bytes(b"left by a killed process")
    assert run(founded, "refresh", *founded.words("online")) == 0
    assert founded.open().snapshot.signed.version == 3
    assert founded.layout.versioned("snapshot", 2).read_bytes() == b"left by a killed process"
    judge(founded).refresh()


def test_clients_take_a_restored_repository_when_versions_were_left_out(founded: World) -> None:
    shutil.copytree(founded.directory, founded.folder / "backup")
    for _ in range(3):
        run(founded, "refresh", "--all", *founded.words("online", "release", "stable"))
    client = judge(founded)
    client.refresh()
    shutil.rmtree(founded.directory)
    shutil.copytree(founded.folder / "backup", founded.directory)
    run(founded, "refresh", *founded.words("online"))
    with pytest.raises(RepositoryError):
        client.refresh()
    assert "release.key (" in refusal(founded, "refresh", "--skip", "100", *founded.words("online", "stable"))
    assert "expected 0 to" in refusal(founded, "refresh", "--skip", "100000", *founded.words("online"))
    assert run(founded, "refresh", "--skip", "100", *founded.words("online", "release", "stable")) == 0
    client.document()
    assert {role["version"] > 100 for role in overview(founded.open(), seconds())["roles"][1:]} == {True}


@pytest.mark.parametrize("name", ["1.root.json", "timestamp.json", "1.snapshot.json", "1.channel-stable.json"])
def test_what_is_missing_is_named(founded: World, name: str) -> None:
    (founded.layout.metadata / name).unlink()
    assert str(founded.layout.metadata) in refusal(founded, "status")


@pytest.mark.parametrize("action", ["status", "refresh", "sign"])
def test_no_repository_is_said_and_none_is_made(world: World, action: str) -> None:
    assert "'tapeout repository init" in refusal(world, action, *(world.words("online") if action != "status" else []))
    assert not world.directory.exists()
