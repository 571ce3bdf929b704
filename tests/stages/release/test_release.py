"""`tapeout release`, from a build's bundles to who gets them."""

import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.errors import ReleaseError, TapeoutError
from pipelines.project import Project
from pipelines.sealed import write_sealed
from stages.release.commands import release as command
from stages.release.history import releasing
from stages.release.history.history import History
from stages.release.layout import Releases
from stages.release.manifest import sha256_of
from stages.release.signing.keys import new_key, trusted_keys
from tests.stages.release.projects import build, entries_of, key_file, make_project, released, state, statement_of


@dataclass
class Run:
    """Runs `tapeout release` in a project. capsys: pytest's."""

    project: Project
    capsys: Any

    def __call__(self, *words: str, signed: bool = True) -> str:
        """Return what it prints. Raises TapeoutError."""
        key = ["--key", str(key_file(self.project))] if signed else []
        self.capsys.readouterr()
        assert command.release([*words, *key], self.project) == 0
        captured = self.capsys.readouterr()
        self.said = captured.err
        return captured.out

    def refused(self, *words: str, signed: bool = True) -> str:
        """Return why it refuses, and check that nothing was recorded."""
        before = entries_of(self.project)
        with pytest.raises(TapeoutError) as error:
            self(*words, signed=signed)
        assert entries_of(self.project) == before
        return str(error.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project in which nothing was built, and one with three versions for two devices."""
    empty = make_project(tmp_path_factory.mktemp("empty"))
    full = make_project(tmp_path_factory.mktemp("full"))
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        released(full, version, "pixel-8", "iphone-15", seed=int(version[2]), weights=2000)
    return empty, full


@pytest.fixture
def run(made, tmp_path, capsys, monkeypatch):
    """A project in which builds are made up, provenance too."""
    monkeypatch.setattr(command, "read_statement", statement_of)
    return Run(copied(made[0], tmp_path), capsys)


@pytest.fixture
def three(made, tmp_path, capsys, monkeypatch):
    """Three versions for two devices."""
    monkeypatch.setattr(command, "read_statement", statement_of)
    return Run(copied(made[1], tmp_path), capsys)


def copied(project: Project, folder: Path) -> Project:
    shutil.copytree(project.root, folder, dirs_exist_ok=True)
    return Project(folder)


def test_a_lost_history_is_not_begun_anew(three):
    Releases(three.project).history.unlink()
    build(three.project, "pixel-8", "2.0.0")
    with pytest.raises(ReleaseError, match="its history is lost"):
        three("create", "pixel-8", "--version", "2.0.0")
    assert not Releases(three.project).history.exists() or not Releases(three.project).history.read_bytes()


def test_create_archives_signs_and_records_all_devices_of_the_last_build(run):
    for device in ("pixel-8", "iphone-15", "of-an-older-build"):
        build(run.project, device, "1.0.0")
    write_sealed(run.project.state / "last.json", {"bundles": {"pixel-8": "x", "iphone-15": "y"}})
    out = run("create", "--reason", "first", "--who", "ci")
    (entry,) = entries_of(run.project)
    assert (entry.action, entry.devices, entry.reason, entry.who["name"]) == (
        "create", ("iphone-15", "pixel-8"), "first", "ci")  # fmt: skip
    assert "demo 1.0.0 for pixel-8: releases/1.0.0/pixel-8.tar" in out and f"entry {entry.head}" in out
    archive = Releases(run.project).archive("1.0.0", "pixel-8")
    bundle = sha256_of(run.project.artifacts / "pixel-8" / "manifest.json")
    assert entry.releases["pixel-8"] == {"bundle": bundle, "archive": sha256_of(archive)}
    assert {path.name for path in archive.parent.iterdir()} == {
        f"{device}{end}" for device in ("pixel-8", "iphone-15") for end in (".tar", ".provenance.json", ".model.sig")
    }


def test_create_again_records_nothing_and_puts_back_what_is_gone(run):
    build(run.project, "pixel-8", "1.0.0")
    run("create")
    archive = Releases(run.project).archive("1.0.0", "pixel-8")
    before = archive.read_bytes()
    assert "released already" in run("create")
    shutil.rmtree(archive.parent)
    out = run("create")
    assert archive.read_bytes() == before and "nothing recorded" in out and len(entries_of(run.project)) == 1
    build(run.project, "iphone-15", "1.0.0")
    run("create")
    assert entries_of(run.project)[1].devices == ("iphone-15",)


def not_passed(project, **gate):
    build(project, "pixel-8", "1.0.0", validation={"gates": [{"metric": "size_mib", "bound": 2.0, **gate}]})


REFUSED_BUILDS = {
    "nothing was built": (lambda p: None, [], "no bundle"),
    "another device": (lambda p: build(p, "pixel-8", "1.0.0"), ["pixel-9"], "did you mean 'pixel-8'"),
    "another version": (
        lambda p: build(p, "pixel-8", "1.0.0"), ["--version", "2.0.0"], "tapeout build package.version=2.0.0"),
    "a failed gate": (
        lambda p: not_passed(p, value=3.0, passed=False), [], "1 of 1 gates did not pass: size_mib 3.0 (bound 2.0)"),
    "a gate that says nothing": (lambda p: not_passed(p), [], "gates did not pass"),
    "no list of gates": (
        lambda p: build(p, "pixel-8", "1.0.0", validation={}), [], "validation.gates is missing, expected a list"),
    "gates that are none": (
        lambda p: build(p, "pixel-8", "1.0.0", validation={"gates": {}}), [], "validation.gates is dict"),
    "two versions": (
        lambda p: (build(p, "pixel-8", "1.0.0"), build(p, "iphone-15", "1.1.0")), [], "one version for all"),
    "a changed file": (
        lambda p: (build(p, "pixel-8", "1.0.0"), (p.artifacts / "pixel-8/encoder.onnx").write_bytes(b"x" * 20)),
        [], "encoder.onnx"),
    "a file too many": (
        lambda p: (build(p, "pixel-8", "1.0.0"), (p.artifacts / "pixel-8/more").write_bytes(b"x")), [], "more"),
    "a bundle in another device's place": (
        lambda p: (build(p, "pixel-8", "1.0.0"), (p.artifacts / "pixel-8").rename(p.artifacts / "pixel-9")),
        [], "holds the bundle for 'pixel-8'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_BUILDS)
def test_what_may_not_be_released(run, case):
    prepare, words, message = REFUSED_BUILDS[case]
    prepare(run.project)
    assert message in run.refused("create", *words)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (lambda p, d: None, "no build of this project says where"),
        (lambda p, d: statement_of(p, d, version="0.9.0"), "provenance of another bundle: demo 0.9.0"),
        (lambda p, d: statement_of(p, d, dirty=True), "sources that no commit holds: stages/convert.py"),
    ],
)
def test_what_cannot_be_traced_may_not_be_released(run, monkeypatch, statement, message):
    build(run.project, "pixel-8", "1.0.0")
    monkeypatch.setattr(command, "read_statement", statement)
    assert message in run.refused("create")
    assert not Releases(run.project).archive("1.0.0", "pixel-8").exists()


def test_a_promotion_says_that_there_were_no_gates(run):
    """A build may be configured to have none: then nobody should take it for one that passed."""
    build(run.project, "pixel-8", "1.0.0", validation={"gates": []})
    run("create")
    assert "demo 1.0.0 for pixel-8: held against NO gates" in run("promote", "1.0.0", "--channel", "stable")
    build(run.project, "pixel-8", "1.1.0")
    run("create")
    assert "NO gates" not in run("promote", "1.1.0", "--channel", "stable")


def test_uncommitted_sources_are_in_the_history(run, monkeypatch):
    build(run.project, "pixel-8", "1.0.0")
    monkeypatch.setattr(command, "read_statement", lambda project, device: statement_of(project, device, dirty=True))
    run("create", "--allow-dirty")
    assert entries_of(run.project)[0].releases["pixel-8"]["dirty"] is True
    assert "uncommitted sources" in run("history", signed=False)
    assert "pixel-8 (dirty)" in run("status", signed=False)


def test_a_version_is_released_once(three):
    build(three.project, "pixel-8", "1.0.0", seed=99)
    archive = Releases(three.project).archive("1.0.0", "pixel-8").read_bytes()
    assert "choose another version" in three.refused("create", "pixel-8")
    assert Releases(three.project).archive("1.0.0", "pixel-8").read_bytes() == archive
    build(three.project, "watch", "1.0.0", name="other")
    assert "release 1.0.0 is of the model demo, not other" in three.refused("create", "watch")
    three("retire", "1.1.0")
    build(three.project, "pixel-8", "1.1.0", seed=1, weights=2000)
    assert "released and retired" in three.refused("create", "pixel-8")


@pytest.mark.parametrize("moment", ["sign_bundle", "pack"])
def test_create_goes_on_where_it_was_killed(run, monkeypatch, moment):
    build(run.project, "pixel-8", "1.0.0")
    with monkeypatch.context() as patch:
        patch.setattr(releasing, moment, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("create")
    assert entries_of(run.project) == []
    run("create")
    run("promote", "1.0.0", "--channel", "stable")
    assert state(run.project).channel("stable", "pixel-8").champion.version == "1.0.0"


def test_the_life_of_a_release(three):
    out = three("promote", "1.0.0", "--channel", "stable")
    assert out.startswith("new channel stable\n") and "stable pixel-8: 1.0.0 is the champion" in out
    out = three("promote", "1.1.0", "--channel", "stable", "--device", "pixel-8", "--share", "12.5", "--reason", "try")
    assert "challenger 1.1.0 has 12.5 %; champion 1.0.0 87.5 %" in out
    status = three("status", signed=False)
    assert "pixel-8    stable   1.0.0     challenger 1.1.0 12.5 %  5" in status and "MLflow     none" in status
    three("promote", "1.1.0", "--channel", "stable")
    three("rollback", "--channel", "stable", "--device", "pixel-8")
    three("retire", "1.2.0")
    value = json.loads(three("status", "--json", signed=False))
    assert {(each["device"], each["champion"]) for each in value["channels"]} == {
        ("pixel-8", "1.0.0"), ("iphone-15", "1.1.0")}  # fmt: skip
    assert {each["version"] for each in value["releases"] if each["retired"]} == {"1.2.0"}
    assert value["head"] == entries_of(three.project)[-1].head and value["registry"]["kind"] == "none"
    history = three("history", signed=False)
    assert "champion 1.0.0, challenger 1.1.0 12.5 %; try" in history and f"head {value['head']}" in history
    three("status", "--expect", value["head"], signed=False)
    assert "its end was cut off" in three.refused("history", "--expect", f"9{value['head'][1:]}", signed=False)


def test_what_a_terminal_would_obey_is_escaped(three):
    three("promote", "1.0.0", "--channel", "stable", "--who", "\x1b[1mme", "--reason", "\x1b]0;x\x07\u202eok\r")
    history = three("history", signed=False)
    assert "\\x1b[1mme" in history and "\\x1b]0;x\\x07\\u202eok\\r" in history
    assert all(letter.isprintable() or letter == "\n" for letter in history)


def test_entries_that_nobody_could_check_are_named(three, tmp_path):
    other = new_key(tmp_path / "other")
    keys = Releases(three.project).keys
    shutil.copy(tmp_path / "other.pub", keys)
    with History(Releases(three.project).history).writing(trusted_keys((), Releases(three.project))) as writing:
        writing.append(other, "", "rollback", name="demo", version="1.0.0", devices=("pixel-8",), channel="stable")
    three("promote", "1.0.0", "--channel", "stable")
    (keys / "other.pub").unlink()
    assert json.loads(three("status", "--json", signed=False))["unchecked"] == [4]
    assert "entries whose signature nobody could check: 1 (4)" in three.said
    assert json.loads(three("history", "--json", signed=False))["unchecked"] == [4]
    (keys / "former").mkdir()
    shutil.copy(tmp_path / "other.pub", keys / "former")
    assert json.loads(three("status", "--json", signed=False))["unchecked"] == [] and three.said == ""


def test_history_of_a_channel_or_a_device(three):
    three("promote", "1.0.0", "--channel", "stable")
    three("promote", "1.1.0", "--channel", "beta", "--new-channel", "--device", "pixel-8")

    def sequences(*words):
        return [entry["sequence"] for entry in json.loads(three("history", "--json", *words, signed=False))["entries"]]

    assert sequences() == [1, 2, 3, 4, 5]
    assert sequences("--channel", "beta") == [5]
    assert sequences("--device", "iphone-15") == [1, 2, 3, 4]
    assert sequences("--channel", "stable", "--device", "pixel-8") == [4]
    assert "did you mean 'beta'" in three.refused("history", "--channel", "betta", signed=False)
    assert "did you mean 'pixel-8'" in three.refused("history", "--device", "pixel8", signed=False)


def swapped(project, archive):
    """The archive of 1.1.0, with its sidecars, in 1.0.0's place."""
    for path in Releases(project).archive("1.1.0", "pixel-8").parent.glob("pixel-8.*"):
        shutil.copy(path, archive.parent / path.name)


DAMAGE = {
    "a flipped byte": (lambda p, a: a.write_bytes(a.read_bytes().replace(b"graph of the enc", b"graph of the eNc")),
                       "encoder.onnx"),
    "no archive": (lambda p, a: a.unlink(), "missing"),
    "no provenance": (lambda p, a: a.with_name("pixel-8.provenance.json").unlink(), "no provenance"),
    "no signature at all": (lambda p, a: [path.unlink() for path in a.parent.glob("pixel-8.*") if path != a], "nobody"),
    "another release": (swapped, "the history says"),
    "another's provenance": (
        lambda p, a: shutil.copy(a.with_name("iphone-15.provenance.json"), a.with_name("pixel-8.provenance.json")),
        "another bundle"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_released_is_verified_again_at_promotion(three, damage):
    change, message = DAMAGE[damage]
    archive = Releases(three.project).archive("1.0.0", "pixel-8")
    change(three.project, archive)
    assert message in three.refused("promote", "1.0.0", "--channel", "stable")
    three("promote", "1.0.0", "--channel", "stable", "--device", "iphone-15")  # the other one is whole


def test_an_arm_ends_and_a_rollback_works_whatever_has_become_of_the_archives(three):
    for version in ("1.0.0", "1.1.0"):
        three("promote", version, "--channel", "stable")
    three("promote", "1.2.0", "--channel", "stable", "--share", "5")
    for version in ("1.0.0", "1.2.0"):
        shutil.rmtree(Releases(three.project).folder / version)
    three("promote", "1.2.0", "--channel", "stable", "--share", "0")
    three("rollback", "--channel", "stable")
    assert state(three.project).channel("stable", "pixel-8").champion.version == "1.0.0"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["promote", "1.0.0"], 2, "--channel"),
        (["promote", "1.0.1", "--channel", "stable"], 2, "did you mean '1.0.0'"),
        (["rollback", "--channel", "stable"], 2, "there is no channel 'stable'"),
        (["promote", "1.0.0", "--channel", "stable", "--share", "10"], 1, "promote a release without --share first"),
        (["promote", "1.0.0", "--chanel", "stable"], 2, "did you mean '--channel'"),
        (["promte"], 2, "did you mean 'promote'"),
        ([], 2, "needs an action"),
    ],
)
def test_wrong_use_is_one_message_without_a_traceback(three, words, status, message):
    key = ["--key", str(key_file(three.project))] if words[1:] else []
    assert main(["--project", str(three.project.root), "release", *words, *key]) == status
    assert message in three.capsys.readouterr().err


def test_a_key_that_is_not_trusted_changes_nothing(three, tmp_path):
    new_key(tmp_path / "other.key")
    with pytest.raises(TapeoutError, match=r"cp other\.key\.pub"):
        command.release(["rollback", "--channel", "x", "--key", str(tmp_path / "other.key")], three.project)
    build(three.project, "pixel-8", "3.0.0")
    with pytest.raises(TapeoutError, match="would not trust this key"):
        command.release(["create", "pixel-8", "--key", str(tmp_path / "other.key")], three.project)
    assert not Releases(three.project).archive("3.0.0", "pixel-8").exists()


def test_a_killed_command_is_told_of_and_the_next_one_goes_on(three):
    path = Releases(three.project).history
    path.write_bytes(path.read_bytes() + b'{"payload":"eyJ')
    assert "history    3 entries" in three("status", signed=False) and "the 15 bytes at its end" in three.said
    three("promote", "1.0.0", "--channel", "stable")
    assert "dropping 15 bytes" in three.said and len(entries_of(three.project)) == 4
    three("status", signed=False)
    assert three.said == ""


def work(root, seed, count):
    """Promote and roll back at random; what is printed goes to SEED.out."""
    os.chdir(root)
    draw = random.Random(seed)
    acts = [["rollback"], *(["promote", version] for version in ("1.0.0", "1.1.0", "1.2.0"))]
    with open(f"{seed}.out", "w", buffering=1) as sys.stdout, open(f"{seed}.err", "w", buffering=1) as sys.stderr:
        for number in range(count):
            rest = ["--channel", "stable", "--key", "release.key", "--reason", f"{seed}.{number}", "--json"]
            main(["release", *draw.choice(acts), *rest])


def test_commands_of_four_processes_at_once_and_one_is_killed(three):
    root = three.project.root
    three("promote", "1.0.0", "--channel", "stable")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(root, seed, 8)) for seed in range(4)]
    for process in processes:
        process.start()
    while not (root / "0.out").is_file() or not (root / "0.out").read_text().count("\n"):
        time.sleep(0.01)
    processes[0].kill()  # in the midst of it
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes[1:]] == [0, 0, 0]
    lines = [line for seed in range(4) for line in (root / f"{seed}.out").read_text().splitlines()]
    said = [json.loads(line) for line in lines if line.endswith("}")]
    assert not any("Traceback" in (root / f"{seed}.err").read_text() for seed in range(4))
    promised = {each["entry"]["sequence"]: each["entry"]["digest"] for each in said if each.get("entry")}
    entries = {entry.sequence: entry for entry in entries_of(three.project)}
    assert len(promised) >= 9 and all(entries[number].digest == digest for number, digest in promised.items())
    unsaid = [entry for entry in entries.values() if entry.sequence > 4 and entry.sequence not in promised]
    assert all(entry.reason.startswith("0.") for entry in unsaid) and len(unsaid) <= 2  # of the one that was killed
    for before, after in zip(list(entries.values())[4:], list(entries.values())[5:], strict=False):
        if after.action == "rollback":  # each was decided on what the one before had left
            former = before.set["stable"]["pixel-8"]["former"]
            assert after.set["stable"]["pixel-8"]["champion"]["version"] == former[-1]
