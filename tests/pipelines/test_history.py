"""What was built, and `tapeout gc`: what a named build, one of the last builds or the workspace needs stays."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.sealed import read_sealed, write_sealed
from tests.pipelines.toy import Toy, add_dvc, environment, make_toy

FOUR, EIGHT, THREE = [], ["quantize.bits=8", "--name", "eight"], ["quantize.bits=3"]
PAIR = "pipeline=pair"


def builds(toy: Toy) -> list[dict[str, object]]:
    return list(json.loads(toy.run("builds", "--json").out)["builds"])


def stored(toy: Toy) -> set[str]:
    """Every object, record, entry, log and artifact."""
    places = [".dvc/cache", ".tapeout/cache", ".tapeout/ledger", ".tapeout/builds", ".tapeout/logs", "artifacts"]
    found = [path for place in places for path in (toy.root / place).rglob("*") if path.is_file()]
    return {path.relative_to(toy.root).as_posix() for path in found}


def cached(toy: Toy, *words: str) -> set[str]:
    """The nodes that a build would take from the store."""
    nodes = json.loads(toy.run("plan", "--json", *words).out)["nodes"]
    return {node["name"] for node in nodes if node["status"] == "cached"}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A project under DVC in which 4, 8 (named) and 3 bits were built, in this order."""
    toy = make_toy(tmp_path_factory.mktemp("three") / "toy")
    add_dvc(toy)
    for words in (FOUR, EIGHT, THREE):
        assert toy.build(PAIR, *words).status == 0
    return toy


@pytest.fixture
def toy3(three: Toy, tmp_path: Path) -> Toy:
    """A copy of it, which a test may change."""
    shutil.copytree(three.root, tmp_path / "toy")
    return Toy(tmp_path / "toy")


def test_builds_are_listed_with_the_newest_first(three: Toy) -> None:
    names = ("number", "name", "overrides", "built", "cached")
    assert [tuple(each[name] for name in names) for each in builds(three)] == [
        (3, None, [PAIR, "quantize.bits=3"], 1, 1),
        (2, "eight", [PAIR, "quantize.bits=8"], 1, 1),
        (1, None, [PAIR], 2, 0),
    ]
    lines = three.run("builds").out.splitlines()
    assert lines[0].split() == ["build", "began", "name", "result", "built", "cached", "overrides"]
    assert re.fullmatch(rf"2 +\d+-\d+-\d+ \d+:\d+  eight  passed  1      1       {PAIR} quantize.bits=8", lines[2])


def test_a_build_that_changes_nothing_leaves_no_entry(toy3: Toy) -> None:
    before = {path: path.stat().st_mtime_ns for path in (toy3.root / ".tapeout/builds").iterdir()}
    assert toy3.build(PAIR, *THREE).status == 0
    assert {path: path.stat().st_mtime_ns for path in (toy3.root / ".tapeout/builds").iterdir()} == before
    assert toy3.build(PAIR, *THREE, "--name", "three").status == 0
    assert [(each["number"], each["name"]) for each in builds(toy3)] == [(3, "three"), (2, "eight"), (1, None)]
    assert toy3.build(PAIR).status == 0
    assert (builds(toy3)[0]["number"], builds(toy3)[0]["built"]) == (4, 0)


def test_there_is_no_build_yet(toy: Toy) -> None:
    assert toy.run("builds").out == "no build yet\n"
    assert toy.run("gc").out == "nothing to remove: all is needed\n"


def test_a_name_is_for_one_configuration_that_passed(toy_built: Toy) -> None:
    assert toy_built.build("quantize.bits=8", "--name", "release").status == 0
    other = toy_built.build("quantize.bits=5", "--name", "release")
    assert other.status == 2
    assert "--name release: so is build 2 (release)" in other.err
    assert "tapeout gc --unname release" in other.err
    failed = toy_built.build("quantize.bits=3", "validate.bound=0.95", "--name", "next")
    assert failed.status == 1
    assert "the build did not pass, and is not called next" in failed.err
    assert [(each["name"], each["passed"]) for each in builds(toy_built)[:2]] == [(None, False), ("release", True)]
    toy_built.edit("toystages/quantize.py", "range(3)", "range(4)")
    assert toy_built.build("quantize.bits=8", "--name", "release").status == 0  # made anew, the name moves
    assert [each["name"] for each in builds(toy_built)] == ["release", None, None, None]


def test_gc_keeps_named_builds_and_the_last(toy3: Toy) -> None:
    files = {}
    for words in (EIGHT, FOUR, ["quantize.bits=5"], THREE):
        assert toy3.build(PAIR, *words).status == 0
        files[str(words)] = toy3.files()
    said = json.loads(toy3.run("gc", "--keep", "2", "--json").out)
    assert said["builds"] == [5, 3, 2, 1]
    assert said["bytes"] > 0
    assert toy3.run("verify").status == 0
    assert cached(toy3, PAIR, *THREE) == cached(toy3, PAIR, "quantize.bits=5") == {"load", "quantize"}
    assert cached(toy3, PAIR, "quantize.bits=8") == {"load", "quantize"}
    assert cached(toy3, PAIR) == {"load"}
    assert toy3.call("dvc", "status").out.strip() == "Data and pipelines are up to date."
    for words in (THREE, EIGHT, FOUR):
        assert toy3.build(PAIR, *words).status == 0
        assert toy3.files() == files[str(words)]


def test_the_last_five_are_kept_unless_told_otherwise(toy3: Toy) -> None:
    for bits in range(5, 8):
        assert toy3.build(PAIR, f"quantize.bits={bits}").status == 0
    assert toy3.run("gc").status == 0
    kept = {bits for bits in range(3, 9) if "quantize" in cached(toy3, PAIR, f"quantize.bits={bits}")}
    assert kept == {8, 3, 5, 6, 7}


def test_a_name_that_is_taken_away_protects_no_more(toy3: Toy) -> None:
    assert toy3.run("gc", "--keep", "1").status == 0
    assert "quantize" in cached(toy3, PAIR, "quantize.bits=8")
    assert "no longer called eight: build 2, " in toy3.run("gc", "--keep", "1", "--unname", "eight").out
    assert "quantize" not in cached(toy3, PAIR, "quantize.bits=8")
    result = toy3.run("gc", "--unname", "eigth")
    assert (result.status, "no build is called 'eigth'" in result.err) == (2, True)


def test_what_made_a_kept_result_can_still_be_told(toy3: Toy) -> None:
    assert toy3.run("gc", "--keep", "1", "--unname", "eight").status == 0
    assert [(each["number"], each["dropped"]) for each in builds(toy3)] == [(3, False), (1, True)]
    assert f"made by    build 1, {builds(toy3)[1]['began'][:4]}" in toy3.run("explain", "load", PAIR, *THREE).out
    assert toy3.run("gc", "--keep", "1").out == "nothing to remove: all is needed\n"


def test_a_dry_run_removes_nothing(toy3: Toy) -> None:
    before = stored(toy3)
    said = toy3.run("gc", "--keep", "0", "--unname", "eight", "--dry-run", "--json")
    assert stored(toy3) == before
    assert builds(toy3)[1]["name"] == "eight"
    really = toy3.run("gc", "--keep", "0", "--unname", "eight", "--json")
    assert {**json.loads(said.out), "dry_run": False} == json.loads(really.out)
    gone = before - stored(toy3)
    names = {path.rpartition("md5/")[2].replace("/", "") for path in gone if path.startswith(".dvc/cache")}
    assert names == set(json.loads(really.out)["objects"])


def test_what_lies_in_the_workspace_is_kept_whatever_the_history_says(toy3: Toy) -> None:
    shutil.rmtree(toy3.root / ".tapeout/builds")
    assert toy3.run("gc", "--keep", "0").status == 0
    assert set(toy3.build(PAIR, *THREE).nodes.values()) == {"cached"}
    assert cached(toy3, PAIR) == {"load"}


def test_what_dvc_lock_names_is_kept(toy3: Toy) -> None:
    shutil.rmtree(toy3.root / "artifacts/build")
    assert toy3.run("gc", "--keep", "0", "--unname", "eight").status == 0
    assert toy3.call("dvc", "checkout").status == 0
    assert set(toy3.build(PAIR, *THREE).nodes.values()) == {"cached"}


def test_a_users_own_data_in_the_cache_is_kept(toy3: Toy) -> None:
    """A file, a folder, and a copy of a result that is itself let go."""
    toy3.write("mine/one.txt", "one")
    toy3.write("mine/deep/two.txt", "two")
    toy3.write("three.txt", "three")
    assert toy3.build(PAIR).status == 0
    shutil.copytree(toy3.root / "artifacts/build/quantize", toy3.root / "copy")
    assert toy3.build(PAIR, *THREE).status == 0
    assert toy3.call("dvc", "add", "-q", "mine", "three.txt", "copy").status == 0
    assert toy3.run("gc", "--keep", "1", "--unname", "eight").status == 0
    assert cached(toy3, PAIR) == {"load"}
    for name in ("mine", "copy", "three.txt"):
        path = toy3.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert toy3.call("dvc", "checkout", "-q").status == 0
    assert (toy3.root / "mine/deep/two.txt").read_text() == "two"
    assert (toy3.root / "copy/codes.txt").read_text() == "0.25 0.5 in 4/32"
    assert toy3.call("dvc", "status", "-q").status == 0


def test_a_dvc_file_that_cannot_be_read_stops_gc(toy3: Toy) -> None:
    before = stored(toy3)
    toy3.write("data/mine.dvc", "outs: [{md5: 1")
    result = toy3.run("gc", "--keep", "0")
    assert result.status == 2
    assert "data/mine.dvc cannot be read" in result.err
    assert stored(toy3) == before


def test_gc_waits_for_an_experiment_in_a_copy(toy3: Toy) -> None:
    """DVC notes that it runs, here with DVC's own names and code; and notes so still of one that was killed."""
    from dvc.repo.experiments.executor.base import BaseExecutor, ExecutorInfo, TaskStatus
    from dvc.repo.experiments.queue.tempdir import _STANDALONE_TMP_DIR
    from dvc.repo.experiments.utils import EXEC_PID_DIR

    before = stored(toy3)
    tried = toy3.root / ".dvc/tmp" / _STANDALONE_TMP_DIR
    for name in ("tmpa", "tmpb"):
        (tried / name).mkdir(parents=True)
    note = tried / EXEC_PID_DIR / "1" / f"1{BaseExecutor.INFOFILE_EXT}"
    info = ExecutorInfo("", "", "dvc", str(tried / "tmpa"), ".dvc")
    for info.status in (TaskStatus.PREPARING, TaskStatus.RUNNING):
        info.dump_json(str(note))
        result = toy3.run("gc", "--keep", "0")
        assert result.status == 2
        assert "an experiment in .dvc/tmp/exps/standalone/tmpa" in result.err
        assert stored(toy3) == before
    info.status = TaskStatus.FAILED
    info.dump_json(str(note))
    assert toy3.run("gc", "--keep", "0", "--dry-run").status == 0
    note.write_text("{")
    assert toy3.run("gc", "--keep", "0", "--dry-run").status == 0


def test_what_a_killed_experiment_in_a_copy_has_made_is_kept(toy3: Toy) -> None:
    lock = (toy3.root / "dvc.lock").read_text()
    assert toy3.build(PAIR).status == 0
    toy3.write(".dvc/tmp/exps/tmpa/dvc.lock", lock)
    assert toy3.run("gc", "--keep", "1", "--unname", "eight").status == 0
    assert "quantize" in cached(toy3, PAIR, *THREE)
    assert "quantize" not in cached(toy3, PAIR, "quantize.bits=8")


def test_a_damaged_entry_stops_gc(toy3: Toy) -> None:
    entry = toy3.root / ".tapeout/builds/000002.json"
    entry.write_bytes(entry.read_bytes().replace(b"eight", b"night"))
    before = stored(toy3)
    result = toy3.run("gc", "--keep", "0")
    assert result.status == 1
    assert ".tapeout/builds/000002.json is damaged" in result.err
    assert stored(toy3) == before
    assert [each["number"] for each in builds(toy3)] == [3, 1]
    assert toy3.build(PAIR).status == 0
    assert builds(toy3)[0]["number"] == 4


def test_an_entry_of_another_version_is_named(toy3: Toy) -> None:
    entry = toy3.root / ".tapeout/builds/000002.json"
    write_sealed(entry, {**(read_sealed(entry) or {}), "mood": "good"})
    result = toy3.run("verify")
    assert (result.status, ".tapeout/builds/000002.json: not an entry of this version's" in result.out) == (1, True)
    assert ".tapeout/builds/000002.json is damaged" in toy3.run("gc").err


def test_a_cache_that_others_may_use_is_left_alone(toy: Toy, tmp_path: Path) -> None:
    add_dvc(toy)
    toy.write(".dvc/config", f"[cache]\n    dir = {tmp_path / 'elsewhere'}\n")
    assert toy.build(PAIR).status == 0
    assert toy.build(PAIR, *THREE).status == 0
    result = toy.run("gc", "--keep", "1")
    assert result.status == 2
    assert "other projects may use it" in result.err
    assert cached(toy, PAIR) == {"load", "quantize"}
    assert toy.run("gc", "--keep", "1", "--shared-cache").status == 0
    assert cached(toy, PAIR) == {"load"}


def test_stale_artifacts_and_logs_go(toy_built: Toy) -> None:
    for words in (["device=[phone,tablet,watch]"], []):
        assert toy_built.build(*words).status == 0
    assert (toy_built.root / "artifacts/watch").exists()
    said = toy_built.run("gc", "--keep", "1").out
    assert "folder   artifacts/watch\n" in said
    assert "folder   artifacts/build/convert-phone\n" in said
    assert "log      .tapeout/logs/convert-watch.log\n" in said
    names = {path.name for path in (toy_built.root / "artifacts/build").iterdir() if path.is_dir()}
    assert names == {"load", "quantize", "convert", "validate"}
    assert {path.stem for path in (toy_built.root / ".tapeout/logs").iterdir()} >= names
    assert not (toy_built.root / "artifacts/watch").exists()
    assert toy_built.run("verify").status == 0
    assert set(toy_built.build().nodes.values()) == {"cached"}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_bundle_that_another_stage_makes_now_stays(damaged: bool, toy_built: Toy) -> None:
    """The record of the stage's old name names the same folder; and so may one that cannot be read."""
    toy_built.edit("conf/pipeline/main.yaml", "  package:\n", "  pack:\n")
    assert toy_built.build().status == 0
    files = toy_built.files()
    if damaged:
        toy_built.edit("artifacts/build/pack-phone.json", "{", "")
        del files["build/pack-phone.json"]
    said = toy_built.run("gc", "--keep", "1").out
    assert "folder " not in said
    assert ", 0 folders" in said
    gone = {"build/package-phone.json", "build/package-tablet.json"}
    left = {name: data for name, data in toy_built.files().items() if name != "build/pack-phone.json"}
    assert left == {name: data for name, data in files.items() if name not in gone | {"build/pack-phone.json"}}
    assert set(toy_built.build().nodes.values()) == {"cached"}


def test_folders_go_once_with_all_that_made_them(toy_built: Toy) -> None:
    toy_built.edit("conf/pipeline/main.yaml", "  package:\n", "  pack:\n")
    assert toy_built.build().status == 0
    assert toy_built.build("pipeline=pair").status == 0
    said = json.loads(toy_built.run("gc", "--keep", "1", "--json").out)
    assert said["workspace"].count("artifacts/phone") == 1
    assert not (toy_built.root / "artifacts/phone").exists()


def test_a_killed_build_has_an_entry_and_what_it_made_is_kept(toy_built: Toy) -> None:
    toy_built.edit("toystages/convert.py", "    (work.out", "    import time; time.sleep(60)\n    (work.out")
    words = [sys.executable, "-m", "pipelines.cli", "build", "quantize.bits=8"]
    process = subprocess.Popen(
        words, cwd=toy_built.root, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    assert any(line.startswith("convert") for line in process.stderr)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert (builds(toy_built)[0]["passed"], builds(toy_built)[0]["built"]) == (None, 1)
    assert toy_built.run("gc", "--keep", "1").status == 0
    assert "quantize" in cached(toy_built, "quantize.bits=8")
    assert "made by    build 2, " in toy_built.run("explain", "quantize", "quantize.bits=8").out


KILLED = """
import os, sys
left = int(sys.argv[1])
def deadly(name):
    real = getattr(os, name)
    def call(*words, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return real(*words, **options)
    setattr(os, name, call)
for name in ("unlink", "rename", "replace", "rmdir"):
    deadly(name)
from pipelines.cli import main
sys.exit(main(["gc", "--keep", "1", "--unname", "eight"]))
"""


@pytest.fixture(scope="module")
def collected(three: Toy, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a gc leaves that nobody kills."""
    toy = Toy(tmp_path_factory.mktemp("collected") / "toy")
    shutil.copytree(three.root, toy.root)
    assert toy.run("gc", "--keep", "1", "--unname", "eight").status == 0
    return stored(toy)


@pytest.mark.parametrize("steps", [1, 2, 6, 11, 16])
def test_a_killed_gc_leaves_nothing_wrong(steps: int, three: Toy, collected: set[str], toy3: Toy) -> None:
    """Killed before it changes the file system for the nth time."""
    done = toy3.call(sys.executable, "-c", KILLED, str(steps))
    assert done.status == -signal.SIGKILL
    assert toy3.run("verify").out == "nothing is damaged\n"
    assert toy3.run("gc", "--keep", "1").status == 0
    if steps > 1:  # the name was gone before
        assert stored(toy3) == collected
    assert toy3.build(PAIR, "quantize.bits=8").status == 0
    assert (toy3.root / "artifacts/build/quantize/codes.txt").read_text() == "0.25 0.5 in 8/32"
    assert toy3.build(PAIR, *THREE).status == 0
    assert toy3.files() == three.files()
    assert toy3.run("verify").status == 0


MISTAKES = {
    "a name with a space": (["build", "--name", "a b"], "--name 'a b' is no name for a build"),
    "a name for a plan": (["plan", "--name", "a"], "'tapeout plan' has no use for --name"),
    "a name for a sweep": (["build", "-m", "--name", "a", "quantize.bits=3,4"], "--name names one build"),
    "a build before none": (["gc", "--keep", "-1"], "--keep -1"),
    "a word for gc": (["gc", "everything"], "'tapeout gc' has no use for: everything"),
    "a dry build": (["build", "--dry-run"], "'tapeout build' has no use for --dry-run"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_message(case: str, built: Toy) -> None:
    words, message = MISTAKES[case]
    result = built.run(*words)
    assert result.status == 2
    assert message in result.err
