"""`tapeout plan` and `tapeout explain`: what would run, and why, in words that the user has used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines.toy import Toy, add_dvc, make_toy


def rows(toy: Toy, *words: str) -> dict[str, dict[str, object]]:
    """The rows of `tapeout plan` by node."""
    result = toy.run("plan", "--json", *words)
    assert result.status == 0, result.err
    return {row["name"]: row for row in json.loads(result.out)["nodes"]}


def test_plan_shows_the_graph_and_why(toy_built: Toy) -> None:
    before = toy_built.files()
    assert toy_built.run("plan", "quantize.bits=8").out.splitlines() == [
        "load            cached",
        "quantize        run     <- load               quantize.bits 4 -> 8",
        "convert         run     <- quantize           input quantize may change",
        "validate        run     <- convert            input convert may change",
        "package-phone   run     <- convert, validate  inputs convert, validate may change",
        "package-tablet  run     <- convert, validate  inputs convert, validate may change",
        "5 of 6 would run; 2 devices share: 10 nodes without sharing, 4 saved",
    ]
    assert toy_built.run("plan").out.splitlines()[-1].startswith("0 of 6 would run;")
    assert json.loads(toy_built.run("plan", "--json").out)["saved"] == 4
    assert toy_built.run("plan", "device=[phone]").out.splitlines()[-1] == "0 of 5 would run"
    assert rows(toy_built)["package-phone"]["needs"] == ["convert", "validate"]
    assert toy_built.files() == before


def test_columns_stay_aligned_however_long_the_names_are(toy: Toy) -> None:
    name = "a-device-with-a-very-long-name-that-somebody-chose"
    toy.write(
        f"conf/device/{name}.yaml", f"# @package device.{name}\nname: {name}\nruntime: b\nbudget: 2\noverrides: {{}}"
    )
    lines = toy.run("plan", f"device=[phone,{name}]").out.splitlines()[:-1]
    assert len({line.index(" run ") for line in lines}) == 1
    assert len({line.index("<-") for line in lines[1:]}) == 1
    assert len({line.index("not built before") for line in lines}) == 1


def edit(name: str, old: str, new: str) -> Callable[[Toy], None]:
    return lambda toy: toy.edit(name, old, new)


def write(name: str, text: str) -> Callable[[Toy], None]:
    return lambda toy: toy.write(name, text)


def import_helper(toy: Toy) -> None:
    toy.edit("toystages/quantize.py", "from toystages.folder", "from toystages import helper\nfrom toystages.folder")


def drop_helper(toy: Toy) -> None:
    toy.edit("toystages/load.py", "from toystages import helper\n", "")
    (toy.root / "toystages/helper.py").unlink()


REASONS = {
    "a setting": (None, ["quantize.bits=8"], "quantize", "quantize.bits 4 -> 8"),
    "two settings": (
        None,
        ["quantize.bits=8", "quantize.group_size=64"],
        "quantize",
        "quantize.bits 4 -> 8, and 1 more",
    ),
    "an override of a device": (
        None,
        ["+device.tablet.overrides.quantize.group_size=64"],
        "quantize-tablet",
        "quantize.group_size 32 -> 64",
    ),
    "a field of a device": (
        edit("conf/device/phone.yaml", "budget: 1", "budget: 3"),
        [],
        "validate-phone",
        "device.phone.budget 1 -> 3",
    ),
    "a field of a bundle's device": (
        edit("conf/device/phone.yaml", "budget: 1", "budget: 3"),
        [],
        "package-phone",
        "device.phone.budget 1 -> 3",
    ),
    "a field of devices that share": (
        None,
        ["device.phone.budget=3", "device.tablet.budget=3"],
        "validate",
        "device.phone,tablet.budget 1 -> 3",
    ),
    "a module": (
        edit("toystages/folder.py", "read_text()", "read_text().strip()"),
        [],
        "quantize",
        "toystages/folder.py changed",
    ),
    "a module that is new": (
        lambda toy: (toy.write("toystages/helper/__init__.py", "x = 1\n"), import_helper(toy)),
        [],
        "quantize",
        "toystages/helper/__init__.py added, and 1 more",
    ),
    "a module that is gone": (drop_helper, [], "load", "toystages/helper.py removed, and 1 more"),
    "a module that is not imported any more": (
        edit("toystages/load.py", "from toystages import helper\n", ""),
        [],
        "load",
        "toystages/helper.py no longer imported, and 1 more",
    ),
    "an external input": (
        edit("data/model/weights.txt", "0.25", "0.75"),
        [],
        "load",
        "model.path: data/model changed",
    ),
    "what is read": (write("data/words.csv", "two\n"), [], "load", "data/words.csv changed"),
    "what is read and new": (write("data/more.csv", "two\n"), [], "load", "data/more.csv added"),
    "what is read and gone": (lambda toy: (toy.root / "data/words.csv").unlink(), [], "load", "data/words.csv removed"),
    "an input that may change": (None, ["quantize.bits=8"], "convert", "input quantize may change"),
    "own differences before inputs'": (
        None,
        ["quantize.bits=8", "validate.bound=0.6"],
        "validate",
        "validate.bound 0.5 -> 0.6",
    ),
    "a type": (None, ["quantize.bits=null"], "quantize", "quantize.bits 4 -> null"),
    "a new function": (
        edit("conf/pipeline/main.yaml", "toystages.load.load", "toystages.load.fetch"),
        [],
        "load",
        "run toystages.load.load -> toystages.load.fetch",
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A built project whose `load` reads a file and imports a module more than the toy's own."""
    toy = make_toy(tmp_path_factory.mktemp("base") / "toy")
    toy.edit("conf/pipeline/main.yaml", "libraries: [numpy]", "libraries: [numpy], reads: ['data/*.csv']")
    toy.edit("toystages/schema.py", "    bits: int", "    bits: int | None")
    toy.write("data/words.csv", "one\n")
    toy.write("toystages/helper.py", "x = 1\n")
    toy.edit("toystages/load.py", "from pathlib", "from toystages import helper\nfrom pathlib")
    toy.edit("toystages/load.py", "def load(", "def fetch(config, work):\n    return load(config, work)\n\n\ndef load(")
    assert toy.build().status == 0
    return toy


@pytest.mark.parametrize("case", REASONS)
def test_a_reason_names_what_the_user_has_changed(case: str, base: Toy, tmp_path: Path) -> None:
    change, words, node, expected = REASONS[case]
    toy = Toy(tmp_path / "toy")
    shutil.copytree(base.root, toy.root)
    if change is not None:
        change(toy)
    assert rows(toy, *words)[node]["why"] == expected


def test_an_input_that_changed_goes_by_its_stage(toy_built: Toy) -> None:
    why = toy_built.build("quantize.bits=8").why
    assert why["quantize"] == "quantize.bits 4 -> 8"
    assert why["convert"] == "input quantize changed"
    assert why["package-phone"] == "input convert changed"  # the validation came out the same


def test_a_library_and_tapeout_itself_are_named(toy_built: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.keys.version", lambda library, stage: "99.1")
    why = str(rows(toy_built)["load"]["why"])
    assert why.startswith("library numpy ")
    assert why.endswith(" -> 99.1")
    monkeypatch.undo()
    monkeypatch.setattr("pipelines.keys.ENGINE", 99)
    assert rows(toy_built)["load"]["why"] == "Tapeout itself changed"


def test_a_node_is_compared_with_the_newest_build_that_knows_it(toy_built: Toy) -> None:
    toy_built.build("quantize.bits=8")
    toy_built.build("device=[watch]")
    shutil.rmtree(toy_built.root / "artifacts")
    assert rows(toy_built, "quantize.bits=5")["quantize"]["why"] == "quantize.bits 4 -> 5"
    assert rows(toy_built, "quantize.bits=8")["validate"]["status"] == "cached"


def test_a_device_is_not_held_against_another(toy: Toy) -> None:
    """With one device each, both have a node called `validate`."""
    assert toy.build("device=[phone]").status == 0
    why = {name: row["why"] for name, row in rows(toy, "device=[watch]").items()}
    assert why["convert"] == why["validate"] == why["package-watch"] == "not built before"
    assert toy.build("device=[watch]").why["validate"] == "not built before"
    assert toy.run("explain", "validate", "device=[watch]", "validate.bound=0.6").out.count("last made  build 2") == 1
    phone = rows(toy, "device=[phone]", "device.phone.budget=3")  # artifacts/ holds the watch's now
    assert phone["validate"]["why"] == "device.phone.budget 1 -> 3"
    both = rows(toy, "device=[phone,watch]", "validate.bound=0.6")
    assert both["validate-phone"]["why"] == both["validate-watch"]["why"] == "validate.bound 0.5 -> 0.6"
    assert rows(toy, "device=[tablet]", "quantize=int8")["quantize"]["why"] == "quantize.bits 4 -> 8"  # reads no device


def test_a_device_that_a_record_names_is_not_held_against_another_either(toy: Toy) -> None:
    """Without a history, too: what was pulled has none."""
    toy.edit("conf/pipeline/main.yaml", "device_fields: [budget]", "device_fields: [name, budget]")
    assert toy.build("device=[phone]").status == 0
    shutil.rmtree(toy.root / ".tapeout/builds")
    assert rows(toy, "device=[watch]")["validate"]["why"] == "not built before"
    assert rows(toy, "device=[phone]", "device.phone.budget=3")["validate"]["why"] == "device.phone.budget 1 -> 3"


def test_explain_says_what_a_node_is_made_of_and_what_was_different(toy_built: Toy) -> None:
    lines = toy_built.run("explain", "quantize", "quantize.bits=8").out.splitlines()
    assert lines[0] == "quantize: toystages.quantize.quantize"
    assert lines[1].split() == ["status", "would", "run:", "quantize.bits", "4", "->", "8"]
    assert lines[2].split()[:4] == ["last", "made", "build", "1,"]
    assert any(line.split() == ["config", "quantize.bits", "8", "(was", "4)"] for line in lines)
    assert any(line.split()[:2] == ["modules", "toystages/folder.py"] for line in lines)
    assert any(line.split()[:2] == ["inputs", "load"] and len(line.split()) == 3 for line in lines)
    found = json.loads(toy_built.run("explain", "quantize", "quantize.bits=8", "--json").out)
    assert (found["name"], found["ingredients"]["config"]["bits"]) == ("quantize", 8)
    assert found["changes"] == ["quantize.bits 4 -> 8"]
    waits = toy_built.run("explain", "convert", "quantize.bits=8").out
    assert "inputs     quantize" in waits
    assert "would run   (was " in waits


def test_explain_says_which_build_made_a_cached_result(toy_built: Toy) -> None:
    assert toy_built.build("quantize.bits=8", "--name", "eight").status == 0
    assert toy_built.build().status == 0
    said = toy_built.run("explain", "convert").out.splitlines()
    assert said[1].split() == ["status", "cached"]
    assert said[2].split()[:4] == ["made", "by", "build", "1,"]
    assert said[2].endswith("no overrides")
    digest = toy_built.build().summary["nodes"][2]["digest"]
    assert said[3].split() == ["digest", digest]
    made = json.loads(toy_built.run("explain", "convert", "quantize.bits=8", "--json").out)
    assert made["made_by"].startswith("build 2 (eight), ")
    assert made["made_by"].endswith("quantize.bits=8")


def test_explain_names_what_is_gone(toy_built: Toy) -> None:
    toy_built.edit("toystages/quantize.py", "from toystages.folder import Folder", "Folder = object")
    lines = [line.split() for line in toy_built.run("explain", "quantize").out.splitlines()]
    assert any(words[:4] == ["modules", "toystages/folder.py", "removed", "(was"] for words in lines)


def test_explain_of_what_was_pulled_says_so(toy: Toy, tmp_path: Path) -> None:
    add_dvc(toy)
    assert toy.build("pipeline=pair").status == 0
    shutil.rmtree(toy.root / ".tapeout")
    assert "pulled or made elsewhere" in toy.run("explain", "load", "pipeline=pair").out


def test_explain_of_an_unknown_node_names_the_nearest(toy_built: Toy) -> None:
    result = toy_built.run("explain", "quantise")
    assert result.status == 2
    assert "did you mean 'quantize'?" in result.err


def test_a_stage_with_a_node_for_each_device_names_them(toy: Toy) -> None:
    for built in (False, True):
        result = toy.run("explain", "validate", "device=[phone,watch]")
        assert result.status == 2
        assert "no node is called 'validate': that stage has one for each device here" in result.err
        assert "name one of them: validate-phone, validate-watch\n" in result.err
        if not built:
            assert toy.build("device=[watch]").status == 0  # its node is called validate


def test_a_node_of_the_last_build_only_says_with_which_overrides(toy_built: Toy) -> None:
    assert toy_built.build("device=[watch]", "quantize.bits=8").status == 0
    result = toy_built.run("explain", "package-watch")
    assert result.status == 2
    assert "no node is called 'package-watch' with these overrides" in result.err
    assert "tapeout explain package-watch 'device=[watch]' quantize.bits=8" in result.err
    assert toy_built.run("explain", "package-watch", "device=[watch]", "quantize.bits=8").status == 0
    assert "did you mean 'package-phone'?" in toy_built.run("explain", "package-phon").err
