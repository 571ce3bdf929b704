"""Stages that the configuration leaves out, so that one of their needs stands for them."""

import pytest

from tests.pipelines.toy import Toy

PIPELINE = """
schemas: toystages.schema.SCHEMAS
stages:
  load: {run: toystages.load.load, config: model, sources: {path: ["*.txt"]}}
  search: {run: toystages.search.search, needs: {checkpoint: load}, check: toystages.checks.never}
  recover:
    run: toystages.recover.recover
    config: quantize
    needs: {checkpoint: load, found: search}
    skip: {unless: toystages.checks.is_small, pass: checkpoint}
    per: device
  tune: {run: toystages.tune.tune, needs: {checkpoint: recover}, per: device}
"""
WITHOUT = """
schemas: toystages.schema.SCHEMAS
stages:
  load: {run: toystages.load.load, config: model, sources: {path: ["*.txt"]}}
  tune: {run: toystages.tune.tune, needs: {checkpoint: load}, per: device}
"""
FILES = {
    "conf/pipeline/main.yaml": PIPELINE,
    "conf/pipeline/without.yaml": WITHOUT,
    "toystages/checks.py": """
from pipelines.errors import ConfigError


def is_small(config, device):
    return config.bits < 8


def never(config, device):
    raise ConfigError("no search here")
""",
    "toystages/search.py": """
from toystages.folder import Folder


def search(checkpoint: Folder, work):
    (work.out / "found.txt").write_text("1")
""",
    "toystages/recover.py": """
from toystages.folder import Folder


def recover(checkpoint: Folder, found: Folder, config, work):
    (work.out / "weights.txt").write_text(f"{checkpoint.text('weights.txt')} by {found.text('found.txt')}")
""",
    "toystages/tune.py": """
from toystages.folder import Folder


def tune(checkpoint: Folder, work):
    (work.out / "codes.txt").write_text(checkpoint.text("weights.txt"))
""",
}


@pytest.fixture
def searching(toy: Toy) -> Toy:
    for name, text in FILES.items():
        toy.write(name, text)
    return toy


def allow_search(toy: Toy) -> None:
    toy.edit("toystages/checks.py", 'raise ConfigError("no search here")', "return None")


def test_a_skipped_stage_leaves_no_trace(searching: Toy) -> None:
    without = searching.build("pipeline=without")
    assert without.status == 0, without.err
    before = searching.files()
    skipped = searching.build("quantize=int8")  # search, which nobody needs then, is not even checked
    assert skipped.status == 0, skipped.err
    assert skipped.nodes == {"load": "cached", "tune": "cached"}  # so the keys are the same
    assert searching.files() == before


def test_what_a_skipped_stage_would_need_runs_where_it_is_not_skipped(searching: Toy) -> None:
    assert "no search here" in searching.build().err
    allow_search(searching)
    result = searching.build()
    assert result.nodes == dict.fromkeys(["load", "search", "recover", "tune"], "built"), result.err
    assert searching.files()["build/tune/codes.txt"] == b"0.25 0.5 by 1"
    again = searching.build("quantize=int8")
    assert again.nodes == {"load": "cached", "tune": "built"}
    assert again.why["tune"] == "input load changed"
    assert searching.files()["build/tune/codes.txt"] == b"0.25 0.5"


def test_each_device_for_itself(searching: Toy) -> None:
    allow_search(searching)
    result = searching.build("+device.phone.overrides.quantize.bits=8")
    assert set(result.nodes) == {"load", "search", "recover-tablet", "tune-phone", "tune-tablet"}, result.err
    assert searching.files()["build/tune-phone/codes.txt"] == b"0.25 0.5"
    assert searching.files()["build/tune-tablet/codes.txt"] == b"0.25 0.5 by 1"


def test_skipped_stages_in_a_row(searching: Toy) -> None:
    searching.edit("conf/pipeline/main.yaml", "{checkpoint: recover}, per", "{checkpoint: polish}, per")
    searching.edit(
        "conf/pipeline/main.yaml",
        "  tune:",
        "  polish:\n    run: toystages.recover.recover\n    config: quantize\n    needs: {checkpoint: recover, found:"
        " search}\n    skip: {unless: toystages.checks.is_small, pass: checkpoint}\n    per: device\n  tune:",
    )
    assert searching.build("quantize=int8").nodes == {"load": "built", "tune": "built"}
    allow_search(searching)
    assert searching.build().status == 0
    assert searching.files()["build/tune/codes.txt"] == b"0.25 0.5 by 1 by 1"


def test_a_stage_that_is_one_for_all_devices(searching: Toy) -> None:
    searching.edit("conf/pipeline/main.yaml", "pass: checkpoint}\n    per: device\n", "pass: checkpoint}\n")
    allow_search(searching)
    assert searching.build("quantize=int8").nodes == {"load": "built", "tune": "built"}
    assert set(searching.build().nodes) == {"load", "search", "recover", "tune"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pass: checkpoint", "pass: checkpiont", "did you mean 'checkpoint'"),
        (", pass: checkpoint", "", "needs both"),
        ("pass: checkpoint", "pas: checkpoint", "did you mean 'pass'"),
        ("pass: checkpoint}", "pass: checkpoint}\n    when: {checkpoint: toystages.checks.is_small}", "leave out when"),
        ("toystages.checks.is_small", "toystages.checks.is_smal", "did you mean 'is_small'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(old: str, new: str, message: str, searching: Toy) -> None:
    searching.edit("conf/pipeline/main.yaml", old, new)
    result = searching.run("plan")
    assert result.status == 2 and message in result.err, result.err


def test_an_answer_must_be_true_or_false(searching: Toy) -> None:
    searching.edit("toystages/checks.py", "config.bits < 8", "config.bits")
    result = searching.run("plan")
    assert result.status == 2 and "must return True or False" in result.err
