"""Real DVC on what a build leaves."""

import shutil
from pathlib import Path

import pytest

from tests.pipelines.toy import NODES, Toy, add_dvc, commit, make_toy


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A built project under git and DVC, with dvc.yaml and dvc.lock committed."""
    toy = make_toy(tmp_path_factory.mktemp("dvc") / "toy")
    add_dvc(toy)
    assert toy.build().status == 0
    commit(toy)
    return toy


def clone(toy: Toy, target: Path) -> Toy:
    assert toy.call("git", "clone", "-q", str(toy.root), str(target)).status == 0
    return Toy(target)


def git_status(toy: Toy) -> str:
    return toy.call("git", "status", "--short").out


def test_dvc_agrees_after_a_build(tracked: Toy) -> None:
    assert tracked.call("dvc", "status").out.strip() == "Data and pipelines are up to date."
    repro = tracked.call("dvc", "repro")
    assert repro.status == 0
    assert "Running stage" not in repro.out
    assert git_status(tracked) == ""


def test_a_changed_plan_is_recorded_too(tracked: Toy, tmp_path: Path) -> None:
    toy = Toy(tmp_path / "copy")
    shutil.copytree(tracked.root, toy.root)
    assert toy.build("device=[watch]", "quantize.bits=3").status == 0
    assert "cmd: tapeout stage quantize 'device=[watch]' quantize.bits=3" in (toy.root / "dvc.yaml").read_text()
    toy.edit("toystages/folder.py", "# as it is", "# nothing new")
    assert set(toy.build("device=[watch]", "quantize.bits=3").nodes.values()) == {"cached"}
    assert toy.call("dvc", "status").out.strip() == "Data and pipelines are up to date."


def test_repro_alone_builds_the_same_bytes(tmp_path: Path) -> None:
    """On two stages, for DVC takes a second for each; a failure in the others would show in the other tests."""
    origin = make_toy(tmp_path / "origin")
    add_dvc(origin)
    assert origin.build("pipeline=pair").nodes == {"load": "built", "quantize": "built"}
    commit(origin)
    toy = clone(origin, tmp_path / "clone")
    done = toy.call("dvc", "repro")
    assert done.status == 0, done.err
    assert done.out.count("Running stage") == 2
    assert toy.files() == origin.files()
    assert git_status(toy) == ""
    assert set(toy.build("pipeline=pair").nodes.values()) == {"cached"}
    assert git_status(toy) == ""


def test_a_clone_that_pulls_builds_nothing(tracked: Toy, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    assert tracked.call("dvc", "remote", "add", "--local", "-f", "-d", "here", str(remote)).status == 0
    assert tracked.call("dvc", "push").status == 0
    toy = clone(tracked, tmp_path / "clone")
    toy.call("dvc", "remote", "add", "--local", "-d", "here", str(remote))
    assert toy.call("dvc", "pull").status == 0
    assert toy.files() == tracked.files()
    assert toy.build().nodes == dict.fromkeys(NODES, "cached")
    assert git_status(toy) == ""


def test_an_upgraded_library_is_a_change_for_dvc_too(toy: Toy) -> None:
    add_dvc(toy)
    words = ["pipeline=pair", "+pipeline.stages.load.libraries=[numpy]"]
    toy.write("requirements.lock", "numpy==1\n")
    assert toy.build(*words).status == 0
    assert toy.call("dvc", "status").out.strip() == "Data and pipelines are up to date."
    toy.write("requirements.lock", "numpy==2\n")
    status = toy.call("dvc", "status").out
    assert "load:" in status
    assert "requirements.lock" in status
    assert "quantize:" not in status  # it declares no library
    assert set(toy.build(*words).nodes.values()) == {"cached"}  # the installed versions are what they were
    assert toy.call("dvc", "status").out.strip() == "Data and pipelines are up to date."


SETTINGS = {
    "a per cent sign": ({"config": "[cache]\n    dir = ../50%off\n"}, "50%off"),
    "a local setting": ({"config": "[cache]\n    dir = ../a\n", "config.local": "[cache]\n    dir = ../b\n"}, "b"),
    "no setting": ({"config": "[core]\n    autostage = false\n"}, ".dvc/cache"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_objects_lie_where_dvc_keeps_them(case: str, toy: Toy) -> None:
    files, folder = SETTINGS[case]
    for name, text in files.items():
        toy.write(f".dvc/{name}", text)
    assert toy.build("pipeline=pair").status == 0
    assert list((toy.root / folder / "files/md5").glob("??/*"))


@pytest.mark.parametrize("name", ["config", "config.local"])
def test_a_damaged_setting_of_dvc_is_named(name: str, toy: Toy) -> None:
    toy.write(".dvc/config", "")
    toy.write(f".dvc/{name}", "dir = nowhere\n[cache\n")
    result = toy.build("pipeline=pair")
    assert result.status == 2
    assert f".dvc/{name} is damaged" in result.err


def test_a_stage_does_not_run_on_an_input_whose_gates_failed(toy: Toy) -> None:
    toy.build("validate.bound=0.95")
    result = toy.run("stage", "package-phone", "validate.bound=0.95")
    assert result.status == 1
    assert "retention of ocr is 0.9, below 0.95" in result.err


def test_a_stage_says_which_input_is_missing(toy: Toy) -> None:
    result = toy.run("stage", "quantize")
    assert result.status == 1
    assert "quantize needs load, and artifacts/build/load is not there\n  make it first" in result.err
