"""Needs that depend on the configuration, and code that the configuration names."""

import pytest

from tests.pipelines.toy import Toy

PIPELINE = """
schemas: toystages.schema.SCHEMAS
stages:
  load: {run: toystages.load.load, config: model, sources: {path: ["*.txt"]}, code: [model.module]}
  calibrate: {run: toystages.calibrate.calibrate, needs: {checkpoint: load}}
  quantize:
    run: toystages.tune.tune
    config: quantize
    needs: {checkpoint: load, calibration: calibrate}
    when: {calibration: toystages.checks.is_small}
    per: device
"""
FILES = {
    "conf/pipeline/main.yaml": PIPELINE,
    "conf/model/reference.yaml": "path: data/model\nmodule: null\n",
    "toystages/checks.py": "def is_small(config, device):\n    return config.bits < 8\n",
    "toystages/calibrate.py": """
from toystages.folder import Folder


def calibrate(checkpoint: Folder, work):
    (work.out / "range.txt").write_text("1")
""",
    "toystages/tune.py": """
from toystages.folder import Folder


def tune(checkpoint: Folder, config, work, calibration: Folder | None = None):
    (work.out / "codes.txt").write_text(f"{config.bits} {calibration and calibration.text('range.txt')}")
""",
    "mystages/__init__.py": "",
    "mystages/tower.py": "class Tower:\n    width = 1\n",
}


@pytest.fixture
def conditional(toy: Toy) -> Toy:
    for name, text in FILES.items():
        toy.write(name, text)
    toy.edit("toystages/schema.py", "    path: str\n", "    path: str\n    module: dict[str, Any] | None\n")
    return toy


def test_a_stage_that_nobody_needs_is_left_out(conditional: Toy) -> None:
    result = conditional.build("quantize=int8")
    assert result.status == 0, result.err
    assert set(result.nodes) == {"load", "quantize"}
    assert (conditional.root / "artifacts/build/quantize/codes.txt").read_text() == "8 None"
    again = conditional.build()
    assert again.nodes == {"load": "cached", "calibrate": "built", "quantize": "built"}
    assert (conditional.root / "artifacts/build/quantize/codes.txt").read_text() == "4 1"


def test_each_device_for_itself(conditional: Toy) -> None:
    result = conditional.build("+device.phone.overrides.quantize.bits=8")
    assert result.status == 0, result.err
    codes = {
        name: (conditional.root / f"artifacts/build/{name}/codes.txt").read_text()
        for name in result.nodes
        if "-" in name
    }
    assert codes == {"quantize-phone": "8 None", "quantize-tablet": "4 1"}


def test_code_that_the_configuration_names_is_part_of_the_key(conditional: Toy) -> None:
    override = "model.module={_target_: mystages.tower.Tower}"
    assert conditional.build(override).status == 0
    assert set(conditional.build(override).nodes.values()) == {"cached"}
    conditional.write("mystages/tower.py", "class Tower:\n    width = 1  # the same\n")
    assert set(conditional.build(override).nodes.values()) == {"cached"}
    conditional.write("mystages/tower.py", "class Tower:\n    width = 2\n")
    assert conditional.build(override).nodes["load"] == "built"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("when: {calibration:", "when: {calibratoin:", "did you mean 'calibration'"),
        ("toystages.checks.is_small", "toystages.checks.is_smal", "is_smal"),
        ("code: [model.module]", "code: [model.modul]", "did you mean 'model.module'"),
        ("code: [model.module]", "code: [model.path]", "names no code"),
    ],
)
def test_mistakes_are_told_before_anything_runs(old: str, new: str, message: str, conditional: Toy) -> None:
    conditional.edit("conf/pipeline/main.yaml", old, new)
    result = conditional.run("plan")
    assert result.status == 2 and message in result.err, result.err


def test_an_answer_must_be_true_or_false(conditional: Toy) -> None:
    conditional.write("toystages/checks.py", "def is_small(config, device):\n    return config.bits\n")
    result = conditional.run("plan")
    assert result.status == 2 and "must return True or False" in result.err


def test_what_lies_elsewhere_is_known_by_its_uri(toy: Toy) -> None:
    toy.write(
        "toystages/load.py",
        "def load(config, work):\n    (work.out / 'weights.txt').write_text(config.path)\n",
    )
    first = toy.build("model.path=hf://owner/name")
    assert first.status == 0, first.err
    assert (toy.root / "artifacts/build/load/weights.txt").read_text() == "hf://owner/name"
    assert set(toy.build("model.path=hf://owner/name").nodes.values()) == {"cached"}
    assert toy.build("model.path=models:/name/2").nodes["load"] == "built"


def test_what_dvc_tracks_is_known_by_its_file(toy: Toy) -> None:
    toy.write("toystages/load.py", "def load(config, work):\n    (work.out / 'weights.txt').write_text('1')\n")
    toy.write("data/other.dvc", "outs:\n- md5: 0123.dir\n  path: other\n")
    first = toy.build("model.path=data/other")
    assert first.status == 0, first.err
    assert set(toy.build("model.path=data/other").nodes.values()) == {"cached"}
    toy.write("data/other.dvc", "outs:\n- md5: 4567.dir\n  path: other\n")
    assert toy.build("model.path=data/other").nodes["load"] == "built"


def test_an_external_input_may_be_none(toy: Toy) -> None:
    toy.write(
        "toystages/load.py", "def load(config, work):\n    (work.out / 'weights.txt').write_text(str(config.path))\n"
    )
    toy.edit("toystages/schema.py", "    path: str\n", "    path: str | None\n")
    first = toy.build("model.path=null")
    assert first.status == 0, first.err
    assert (toy.root / "artifacts/build/load/weights.txt").read_text() == "None"
    assert set(toy.build("model.path=null").nodes.values()) == {"cached"}
    assert toy.build("model.path=data/model").nodes["load"] == "built"
