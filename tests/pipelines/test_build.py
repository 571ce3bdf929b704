import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines.toy import NODES, Toy, make_toy


def test_a_build_leaves_bundles_and_says_so(toy: Toy) -> None:
    result = toy.build()
    assert result.status == 0
    assert result.nodes == dict.fromkeys(NODES, "built")
    summary = result.summary
    assert summary["bundles"] == {"phone": "artifacts/phone", "tablet": "artifacts/tablet"}
    assert {(gate["device"], gate["metric"], gate["passed"]) for gate in summary["gates"]} == {
        ("phone", "retention", True),
        ("tablet", "retention", True),
    }
    assert all(
        {"name", "stage", "device", "status", "seconds", "key", "digest"} <= set(node) for node in summary["nodes"]
    )
    manifest = json.loads((toy.root / "artifacts/phone/manifest.json").read_text())
    assert manifest["device"] == "phone"


def test_a_second_build_runs_nothing_and_touches_nothing(toy_built: Toy) -> None:
    toy_built.build()
    before = {path: path.stat().st_mtime_ns for path in (toy_built.root / "artifacts").rglob("*")}
    result = toy_built.build()
    assert result.nodes == dict.fromkeys(NODES, "cached")
    assert {path: path.stat().st_mtime_ns for path in (toy_built.root / "artifacts").rglob("*")} == before


def test_the_terminal_gets_a_table_for_each_device(built: Toy) -> None:
    out = built.run("build").out
    lines = out.splitlines()
    assert lines[0] == "phone  3.00 MiB  artifacts/phone"
    assert lines[2].split() == ["ocr", "10", "99.0", "%", "98.0", "%", "99.0", "%", "[97.0", "%,", "100.0", "%]"]
    assert "parity        top1 99.90 %" in out
    assert "gates         1 of 1 passed" in out


def edit(name: str, old: str, new: str) -> Callable[[Toy], None]:
    return lambda toy: toy.edit(name, old, new)


CHANGES = {
    "nothing": (lambda toy: None, [], set()),
    "a comment": (edit("toystages/folder.py", "# as it is", "# and as it was"), [], set()),
    "a docstring": (edit("toystages/folder.py", "only artifact type", "one artifact type"), [], set()),
    "a comment in conf": (edit("conf/quantize/int4.yaml", "bits: 4", "bits: 4  # few"), [], set()),
    "the stage's code, to the same result": (
        edit("toystages/quantize.py", "range(3)", "range(4 - 1)"),
        [],
        {"quantize"},
    ),
    "an imported module": (
        edit("toystages/folder.py", "read_text()", "read_text().strip()"),
        [],
        {"quantize", "convert", "validate", "package-phone", "package-tablet"},
    ),
    "the checkpoint, to the same result": (edit("data/model/weights.txt", "0.5\n", "0.5\n\n"), [], {"load"}),
    "the checkpoint": (edit("data/model/weights.txt", "0.25", "0.75"), [], set(NODES)),
    "a file that is no source": (lambda toy: toy.write("data/model/README.md", "hello"), [], set()),
    "a setting": (lambda toy: None, ["quantize.bits=3"], set(NODES) - {"load"}),
    "a gate that still passes": (
        lambda toy: None,
        ["validate.bound=0.6"],
        {"validate", "package-phone", "package-tablet"},
    ),
    "one device's budget": (
        edit("conf/device/phone.yaml", "budget: 1", "budget: 3"),
        [],
        {"validate-phone", "package-phone"},
    ),
    "one device's group size": (
        lambda toy: None,
        ["+device.tablet.overrides.quantize.group_size=64"],
        {"quantize-tablet", "convert-tablet", "validate-tablet", "package-tablet"},
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_only_what_a_change_reaches_is_built(case: str, toy_built: Toy) -> None:
    change, overrides, expected = CHANGES[case]
    change(toy_built)
    result = toy_built.build(*overrides)
    assert result.status == 0, result.err
    ran = {name for name, status in result.nodes.items() if status == "built"}
    assert ran == expected


def test_going_back_to_an_earlier_configuration_finds_its_results(toy_built: Toy) -> None:
    first = toy_built.files()
    assert set(toy_built.build("quantize=int8").nodes.values()) == {"built", "cached"}
    assert toy_built.files() != first
    assert set(toy_built.build().nodes.values()) == {"cached"}
    assert toy_built.files() == first


def test_devices_that_differ_do_not_share_a_node(built: Toy) -> None:
    out = built.run("plan", "device=[phone,tablet,watch]").out
    names = [line.split()[0] for line in out.splitlines()]
    assert names[:7] == [
        "load",
        "quantize",
        "convert-phone",
        "convert-watch",
        "validate-phone",
        "validate-watch",
        "package-phone",
    ]


def test_what_turns_out_to_be_the_same_for_two_devices_is_made_once(toy: Toy) -> None:
    """The checks differ, and so do the nodes; what comes of them is equal."""
    toy.write(
        "toystages/twins.py",
        """
import time

def check(checkpoint, device, work):
    (work.out / "found").write_text("same")

def work_hard(found, work):
    time.sleep(1.0)
    (work.out / "made").write_text(str(time.time_ns()))
""",
    )
    toy.write(
        "conf/pipeline/twins.yaml",
        """
schemas: toystages.schema.SCHEMAS
stages:
  load: {run: toystages.load.load, config: model, sources: {path: ["*.txt"]}, libraries: [numpy]}
  check: {run: toystages.twins.check, needs: {checkpoint: load}, per: device, device: true}
  hard: {run: toystages.twins.work_hard, needs: {found: check}, per: device}
""",
    )
    result = toy.build("pipeline=twins", "executor.jobs=4")
    assert {result.nodes["hard-phone"], result.nodes["hard-tablet"]} == {"built", "cached"}, result.err


def test_the_same_bytes_in_another_folder_by_another_user(built: Toy, tmp_path: Path) -> None:
    other = make_toy(tmp_path / "elsewhere" / "deep")
    home = tmp_path / "home"
    home.mkdir()
    assert (
        other.build("--jobs", "2", env={"HOME": str(home), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "3"}).status == 0
    )
    assert other.files() == built.files()
    assert not any(str(tmp_path).encode() in data for data in other.files().values())


def test_a_device_that_fails_does_not_stop_the_others(toy: Toy) -> None:
    toy.edit(
        "toystages/convert.py",
        "    (work",
        "    if device.runtime == 'b':\n        raise ValueError('no b')\n    (work",
    )
    result = toy.build("device=[phone,watch]")
    assert result.status == 1
    assert result.nodes["package-phone"] == "built"
    assert result.nodes["convert-watch"] == "failed"
    assert {result.nodes["validate-watch"], result.nodes["package-watch"]} == {"skipped"}
    assert list(result.summary["bundles"]) == ["phone"]
    assert "toystages.convert.convert failed: ValueError: no b" in result.err
    log = toy.root / ".tapeout/logs/convert-watch.log"
    assert str(log) in result.err
    assert "Traceback" in log.read_text()


def test_a_failed_gate_fails_the_device_and_its_verdict_is_kept(toy: Toy) -> None:
    toy.build("device=[phone,watch]")
    toy.write(
        "conf/device/watch.yaml",
        "# @package device.watch\nname: watch\nruntime: b\nbudget: 2\noverrides: {validate: {bound: 0.95}}\n",
    )
    first, second = toy.build("device=[phone,watch]"), toy.build("device=[phone,watch]")
    for result in (first, second):
        assert result.status == 1
        assert result.nodes["package-watch"] == "skipped"
        assert result.nodes["package-phone"] == "cached"
        assert "GATE FAILED watch: retention of ocr is 0.9, below 0.95" in result.err
        assert not (toy.root / "artifacts/watch").exists()
    assert (first.nodes["validate-watch"], second.nodes["validate-watch"]) == ("built", "cached")
    assert toy.build("device=[phone,watch]", "device.watch.overrides.validate.bound=0.5").status == 0
    assert (toy.root / "artifacts/watch/manifest.json").exists()


FAILURES = {
    "a killed worker": ("import os; os.kill(os.getpid(), 9)", "its worker process was killed by SIGKILL"),
    "an error of ours": (
        "from pipelines.errors import StageError; raise StageError('w.txt is empty', hint='fill it')",
        "w.txt is empty\n  fill it",
    ),
    "an exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "nothing written": ("return", "left no file in its output folder"),
    "a link": ("(work.out / 'link').symlink_to('/etc/passwd')", "is not a plain file"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_stage_that_fails_gets_one_clear_message(case: str, toy: Toy) -> None:
    code, message = FAILURES[case]
    toy.edit("toystages/load.py", '    work.log("loading")', f"    {code}")
    result = toy.build()
    assert result.status == 1
    assert result.nodes["load"] == "failed"
    assert message in result.err
    assert not (toy.root / "artifacts/build/load").exists()
    assert not list((toy.root / ".tapeout/staging").glob("*/*"))


def test_a_field_that_was_not_declared_cannot_be_read(toy: Toy) -> None:
    toy.edit("toystages/convert.py", "device.runtime", "device.budget")
    result = toy.build()
    assert result.status == 1
    assert "reads device.budget\n  declare it: device_fields: [..., budget]" in result.err


def test_a_changed_artifact_is_put_right(toy_built: Toy) -> None:
    before = toy_built.files()
    (toy_built.root / "artifacts/phone/model.bin").write_text("edited")
    (toy_built.root / "artifacts/tablet/extra").write_text("extra")
    shutil.rmtree(toy_built.root / "artifacts/build/convert")
    assert set(toy_built.build().nodes.values()) == {"cached"}
    assert toy_built.files() == before


def test_a_damaged_object_is_made_again(toy_built: Toy) -> None:
    before = toy_built.files()
    for path in (toy_built.root / ".tapeout/cache").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    shutil.rmtree(toy_built.root / "artifacts")
    result = toy_built.build()
    assert result.status == 0
    assert toy_built.files() == before


def test_scratch_outlives_a_kill(toy: Toy) -> None:
    toy.edit(
        "toystages/load.py",
        '    work.log("loading")',
        "    seen = work.scratch / 'seen'\n    if not seen.exists():\n"
        "        seen.touch()\n        import os; os.kill(os.getpid(), 9)",
    )
    assert toy.build("executor.retries=0").status == 1
    assert toy.build().status == 0
    assert not list((toy.root / ".tapeout/scratch").glob("*"))


def test_scratch_that_a_kill_left_behind_its_result_goes(toy_built: Toy) -> None:
    key = json.loads((toy_built.root / "artifacts/build/load.json").read_text())["key"]
    left = toy_built.root / ".tapeout/scratch/load" / key
    left.mkdir(parents=True)
    (left / "measurements.jsonl").touch()
    assert toy_built.build().status == 0
    assert not left.parent.exists()


def test_a_state_under_another_key_is_told_of_and_the_newest_are_kept(toy: Toy) -> None:
    die = '    (work.scratch / "seen").touch()\n    import os; os.kill(os.getpid(), 9)'
    toy.edit("toystages/load.py", '    work.log("loading")', die)
    told = []
    for number in range(5):
        toy.write("data/model/weights.txt", f"0.{number}")
        told.append("load                         starts anew" in toy.build("pipeline=pair").err)
    assert told == [False, True, True, True, True]
    assert len(list((toy.root / ".tapeout/scratch/load").glob("*"))) == 3
    assert "starts anew" not in toy.build("pipeline=pair").err
    toy.edit("toystages/load.py", die, "    pass")
    assert toy.build("pipeline=pair").status == 0
    assert len(list((toy.root / ".tapeout/scratch/load").glob("*"))) <= 3


def test_an_older_result_without_a_record_does_not_pass_for_this_builds(toy_built: Toy) -> None:
    (toy_built.root / "artifacts/build/package-phone.json").write_text("{")
    toy_built.edit("toystages/package.py", "    data =", "    raise ValueError(device.name)\n    data =")
    result = toy_built.build()
    assert result.nodes["package-phone"] == "failed"
    assert not (toy_built.root / "artifacts/phone").exists()
    assert not (toy_built.root / "artifacts/tablet").exists()
    assert "artifacts/phone was an earlier build's and is removed" in result.err


def test_what_a_stage_measures_again_counts_once(toy: Toy) -> None:
    toy.edit(
        "toystages/quantize.py",
        '    (work.out / "codes',
        "    seen = work.scratch / 'seen'\n    if not seen.exists():\n"
        '        seen.touch()\n        import os; os.kill(os.getpid(), 9)\n    (work.out / "codes',
    )
    assert toy.build("pipeline=pair", "executor.retries=0").status == 1
    measured = toy.build("pipeline=pair").summary["measurements"]["quantize"]
    assert [(each["step"], each["value"]) for each in measured] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


def test_a_users_stage_from_a_config_dir(built: Toy, tmp_path: Path) -> None:
    mine = Toy(tmp_path / "mine")
    mine.write("conf/pipeline/short.yaml", "stages: {make: {run: mystages.make.make, config: own, libraries: []}}\n")
    mine.write("conf/own/default.yaml", "text: hello\n")
    mine.write("mystages/__init__.py", "")
    mine.write("mystages/make.py", "def make(config, work):\n    (work.out / 'a').write_text(config.text)\n")
    toy = make_toy(tmp_path / "toy")
    words = ["--config-dir", str(mine.root / "conf"), "pipeline=short", "+own=default"]
    assert toy.build(*words).nodes == {"make": "built"}
    assert toy.files()["build/make/a"] == b"hello"
    assert toy.build(*words).nodes == {"make": "cached"}
    mine.edit("mystages/make.py", "config.text", "config.text * 2")
    assert toy.build(*words).why == {"make": f"{mine.root}/mystages/make.py changed"}


EDITS = {
    "its code": ("toystages/quantize.py", "toystages.quantize"),
    "a module that it imports": ("toystages/folder.py", "toystages.folder"),
    "its input": ("artifacts/build/load/weights.txt", "artifacts/build/load"),
}


@pytest.mark.parametrize("case", EDITS)
def test_what_is_edited_while_a_node_runs_fails_it(case: str, toy: Toy) -> None:
    """Its result would be remembered under the key of what was there before."""
    name, said = EDITS[case]
    once = "    root = work.out.parents[2]\n    if not (root / 'once').exists():\n        (root / 'once').touch()\n"
    edit = f"        (root / '{name}').write_text((root / '{name}').read_text() + '\\nedited = 1\\n')\n"
    toy.edit("toystages/quantize.py", "    for step", f"{once}{edit}    for step")
    result = toy.build("pipeline=pair")
    assert result.nodes == {"load": "built", "quantize": "failed"}
    assert f"quantize: changed while it ran: {said}\n" in result.err
    again = toy.build("pipeline=pair")
    assert again.status == 0
    assert toy.files()["build/quantize/codes.txt"] == b"0.25 0.5 in 4/32"


def test_what_is_edited_in_conf_or_a_comment_while_a_node_runs_does_no_harm(toy: Toy) -> None:
    toy.edit(
        "toystages/quantize.py",
        "    for step",
        "    path = work.out.parents[2] / 'toystages/folder.py'\n"
        "    path.write_text(path.read_text() + '# edited\\n')\n"
        "    for step",
    )
    assert toy.build("pipeline=pair").status == 0


def test_the_report_lists_the_risks_in_a_bundles_manifest(toy: Toy) -> None:
    risk = {
        "risk": "A last axis of 8 <padded>",
        "count": 3,
        "function": "main",
        "line": "model.py:7",
        "source": "a guide",
    }
    toy.edit(
        "toystages/package.py",
        '"files": files}',
        f'"files": files, "risks": [{risk!r}] if device.name == "phone" else []}}',
    )
    assert toy.build().status == 0
    assert toy.run("report").status == 0
    page = (toy.root / "artifacts/report.html").read_text()
    assert page.count("A last axis of 8 &lt;padded&gt;") == 1 and "<td>model.py:7" in page and "No chip has run" in page


def test_devices_of_which_the_same_was_measured_share_a_table(toy: Toy) -> None:
    profile = (toy.root / "conf/device/watch.yaml").read_text()
    for name, budget in (("glasses", 3), ("ring", 4)):
        toy.write(f"conf/device/{name}.yaml", profile.replace("watch", name).replace("budget: 2", f"budget: {budget}"))
    predicted = '"predicted": {"token_ms": {"value": 2.0 * device.budget, "low": 1.0, "high": 9.0}}, "gates": gates}'
    toy.edit("toystages/validate.py", '"gates": gates}', predicted)
    toy.edit(
        "toystages/validate.py", '"passed": value >= config.bound', '"passed": device.budget < 4, "help": ["more bits"]'
    )
    out = toy.run("build", "device=all").out
    assert out.count("retention  95 % interval") == 1 and "glasses, phone, ring, tablet, watch\n" in out
    rows = {line.split()[0]: line for line in out.splitlines() if "MiB" in line}
    assert set(rows) == {"glasses", "phone", "ring", "tablet", "watch"}
    assert "6 [1, 9]" in rows["glasses"] and "1 of 1 passed  artifacts/glasses" in rows["glasses"]
    assert "0 of 1 passed  no bundle" in rows["ring"] and "* predicted, not measured" in out
    assert "FAILED      retention of ocr is 0.9, below 0.5  (ring)\n                more bits\n" in out
    few = toy.run("build", "device=[phone,watch]").out
    assert few.count("retention  95 % interval") == 2 and "predicted     token_ms 4 [1, 9]" in few
