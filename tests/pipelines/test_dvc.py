"""Real DVC on what a build leaves."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.project import Project
from tests.pipelines.toy import NODES, Toy, add_dvc, commit, make_toy


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A built project under git and DVC, with dvc.yaml and dvc.lock committed."""
    toy = make_toy(tmp_path_factory.mktemp("dvc") / "toy")
    add_dvc(toy)
    assert toy.build().status == 0
    commit(toy)
    return toy


@pytest.fixture(scope="module")
def tried(tracked: Toy, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A copy of it, in which `dvc exp run` has tried int8. Tests leave it as they found it."""
    toy = copy(tracked, tmp_path_factory.mktemp("tried") / "toy")
    run = toy.call("dvc", "exp", "run", "-n", "wide", "-S", "quantize=int8")
    assert run.status == 0, run.err
    assert "Running stage 'quantize'" in run.out
    assert "Running stage 'load'" not in run.out
    return toy


def copy(toy: Toy, target: Path) -> Toy:
    shutil.copytree(toy.root, target)
    return Toy(target)


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
    toy = copy(tracked, tmp_path / "copy")
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


def test_text_that_looks_like_a_number_stays_text_for_dvc(toy: Toy) -> None:
    add_dvc(toy)
    assert toy.build("device=[phone]", "device.phone.runtime='1e3'").status == 0
    assert toy.call("dvc", "status").out.strip() == "Data and pipelines are up to date."


def test_what_looks_like_dvcs_own_templates_is_text(toy: Toy) -> None:
    """In the name of a source, and in an override."""
    add_dvc(toy)
    toy.write("data/model/a${x}.txt", "text")
    assert toy.build("pipeline=pair", "quantize.bits=${quantize.group_size}").status == 0
    status = toy.call("dvc", "status")
    assert status.out.strip() == "Data and pipelines are up to date.", status.err


EDITING = """    import pathlib
    file = pathlib.Path(__file__).parents[1] / "conf/quantize/int4.yaml"
    file.write_text(file.read_text().replace("bits: 4", "bits: 5"))
    for step"""


@pytest.mark.parametrize("words", [(), ("executor.jobs=2",)])
def test_conf_that_is_edited_while_a_build_runs_was_not_built(words: tuple[str, ...], toy: Toy) -> None:
    """Whether what the build began with is at hand, or would have to be composed again."""
    add_dvc(toy)
    assert toy.build("device=[phone]", *words).status == 0
    toy.edit("toystages/quantize.py", "    for step", EDITING)
    assert toy.build("device=[phone]", *words).status == 0
    assert (toy.root / "artifacts/build/quantize/codes.txt").read_text().endswith("in 4/32")
    files = [(toy.root / name).read_text() for name in ("params.yaml", "dvc.lock")]
    assert not any("bits: 5" in text for text in files)
    status = toy.call("dvc", "status").out
    assert "quantize:" in status
    assert toy.build("device=[phone]", *words).status == 0
    assert (toy.root / "artifacts/build/quantize/codes.txt").read_text().endswith("in 5/32")
    assert toy.call("dvc", "status").out.strip() == "Data and pipelines are up to date."


def test_a_node_depends_on_what_it_reads_of_the_parameters(toy: Toy) -> None:
    add_dvc(toy)
    toy.edit("conf/device/watch.yaml", "overrides: {}", "overrides: {quantize: {bits: 3}}")
    assert toy.build("device=[phone,watch]").status == 0
    stages = yaml.safe_load((toy.root / "dvc.yaml").read_text())["stages"]
    assert stages["load"]["params"] == ["model", "pipeline.stages.load"]
    assert stages["quantize-phone"]["params"] == ["device.phone.overrides", "pipeline.stages.quantize", "quantize"]
    assert "device.watch.overrides.quantize" in stages["quantize-watch"]["params"]
    assert stages["convert-watch"]["params"] == ["device.watch.runtime", "pipeline.stages.convert"]
    assert stages["package-watch"]["params"] == ["device.watch", "pipeline.stages.package"]


def test_an_experiment_is_shown_with_its_parameters_and_metrics(tried: Toy) -> None:
    assert tried.call("dvc", "status").out.strip() == "Data and pipelines are up to date."
    changed = tried.call("git", "diff", "--unified=0", "params.yaml").out.splitlines()
    assert [line for line in changed if line[:1] in "+-"][2:] == ["-  bits: 4", "+  bits: 8"]
    assert shown(tried) == {"workspace": (8, 0.99), "master": (4, 0.99), "wide": (8, 0.99)}
    metrics = json.loads(tried.call("dvc", "metrics", "show", "--json").out)
    assert metrics[""]["data"]["artifacts/build/validate/metrics.json"]["data"]["parity"] == {"top1": 0.999}
    diff = json.loads(tried.call("dvc", "params", "diff", "--json", "master", "wide").out)
    assert diff == {"params.yaml": {"quantize.bits": {"old": 4, "new": 8, "diff": 4}}}


def shown(toy: Toy) -> dict[str, tuple[int, float]]:
    """What `dvc exp show` has of each revision: quantize.bits and the retention of ocr."""
    rows = json.loads(toy.call("dvc", "exp", "show", "--json").out)
    rows += [each["revs"][0] for row in rows for each in row["experiments"] or []]
    validation = "artifacts/build/validate/metrics.json"
    return {
        row["name"] or row["rev"]: (
            row["data"]["params"]["params.yaml"]["data"]["quantize"]["bits"],
            row["data"]["metrics"][validation]["data"]["tasks"]["ocr"]["retention"],
        )
        for row in rows
    }


def test_a_build_has_what_an_experiment_made_and_goes_back_to_conf(tried: Toy, tmp_path: Path) -> None:
    toy = copy(tried, tmp_path / "copy")
    assert toy.build("quantize=int8").nodes == dict.fromkeys(NODES, "cached")
    assert "bits: 8" in (toy.root / "params.yaml").read_text()
    shutil.rmtree(toy.root)
    shutil.copytree(tried.root, toy.root)
    assert toy.build().nodes == dict.fromkeys(NODES, "cached")
    assert git_status(toy) == ""
    assert toy.build("tracking=none", "executor.retries=0").status == 0
    assert git_status(toy) == ""


def test_gc_keeps_what_experiments_need(tried: Toy, tmp_path: Path) -> None:
    toy = copy(tried, tmp_path / "copy")
    assert toy.build().status == 0
    assert toy.run("gc").status == 0
    applied = toy.call("dvc", "exp", "apply", "wide")
    assert applied.status == 0, applied.err
    assert (toy.root / "artifacts/build/quantize/codes.txt").read_text().endswith("in 8/32")


def test_a_wrong_value_of_an_experiment_is_named(tracked: Toy, tmp_path: Path) -> None:
    toy = copy(tracked, tmp_path / "copy")
    wrong = toy.call("dvc", "exp", "run", "-S", "quantize.bits=four", "quantize")
    assert wrong.status != 0
    assert "params.yaml: quantize: quantize.bits: Value 'four'" in wrong.err
    assert "expected int" in wrong.err
    right = toy.call("dvc", "exp", "run", "-S", "quantize.bits=3", "quantize")
    assert right.status == 0, right.err
    assert (toy.root / "artifacts/build/quantize/codes.txt").read_text().endswith("in 3/32")
    other = toy.call("dvc", "exp", "run", "-S", "+device.phone.overrides.quantize.bits=3", "quantize")
    assert other.status != 0
    assert "there is no node 'quantize' in it\n  what adds or removes nodes" in other.err
    assert toy.build().nodes == dict.fromkeys(NODES, "cached")
    assert git_status(toy) == ""


def test_an_experiment_whose_gates_fail_keeps_its_figures(tracked: Toy, tmp_path: Path) -> None:
    toy = copy(tracked, tmp_path / "copy")
    trial = toy.call("dvc", "exp", "run", "-n", "poor", "-S", "validate.noise=0.5", "validate")
    assert trial.status == 0, trial.err
    assert "GATE FAILED phone, tablet" in trial.err
    assert "poor" in toy.call("dvc", "exp", "list").out


PARAMS = {
    "no file": (None, "params.yaml is not there\n  'tapeout build' writes it"),
    "no YAML": ("a: [", "params.yaml is damaged"),
    "a list": ("- a\n", "params.yaml holds no groups"),
    "a stranger": ("colour: red\n", "params.yaml: unknown key 'colour'"),
}


@pytest.mark.parametrize("case", PARAMS)
def test_a_damaged_params_file_is_named(case: str, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    text, message = PARAMS[case]
    if text is not None:
        toy.write("params.yaml", text)
    monkeypatch.setenv("DVC_EXP_NAME", "trial")
    result = toy.run("stage", "load")
    assert result.status == 2
    assert message in result.err


def test_repro_follows_conf(tracked: Toy, tmp_path: Path) -> None:
    toy = copy(tracked, tmp_path / "copy")
    toy.edit("conf/quantize/int4.yaml", "bits: 4", "bits: 5")
    repro = toy.call("dvc", "repro", "quantize")
    assert repro.status == 0, repro.err
    assert "\n  bits: 5\n" in (toy.root / "params.yaml").read_text()
    nodes = toy.build().nodes
    assert (nodes["load"], nodes["quantize"], nodes["convert"]) == ("cached", "cached", "built")


@pytest.mark.slow
def test_experiments_in_copies_are_kept_too(tracked: Toy, tmp_path: Path) -> None:
    toy = copy(tracked, tmp_path / "copy")
    assert toy.call("dvc", "exp", "run", "--temp", "-S", "quantize.bits=3").status == 0
    assert toy.call("dvc", "exp", "run", "--queue", "-S", "quantize.bits=5,6").status == 0
    assert toy.call("dvc", "exp", "run", "--run-all").status == 0
    for bits in (3, 5, 6):
        assert toy.build(f"quantize.bits={bits}").nodes == dict.fromkeys(NODES, "cached")
    assert toy.build().status == 0
    assert git_status(toy) == ""


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


LEVELS = ["DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"]


@pytest.mark.parametrize("level", LEVELS)
def test_settings_of_the_user_and_the_machine_count(level: str, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LEVELS:
        monkeypatch.setenv(name, str(toy.root / "none"))
    for name in LEVELS[:2] if level.startswith("XDG") else []:
        monkeypatch.delenv(name)
    toy.write(".dvc/config", "")
    monkeypatch.setenv(level, str(toy.root / "own"))
    toy.write("own/dvc/config" if level.startswith("XDG") else "own/config", f"[cache]\n    dir = {toy.root}/theirs\n")
    assert Project(toy.root).cache == toy.root / "theirs"
    if level == "XDG_CONFIG_HOME":
        add_dvc(toy)
        toy.write(".dvc/config", "")
        assert toy.call("dvc", "cache", "dir").out.strip() == str(toy.root / "theirs")
    toy.write(".dvc/config", "[cache]\n    dir = ours\n")
    assert Project(toy.root).cache == toy.root / ".dvc/ours"


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
