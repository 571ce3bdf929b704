"""What a build says of where its bundles come from."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.project import Project
from pipelines.provenance import read_statement
from pipelines.revision import origin_of, revision_of
from tests.pipelines.toy import Toy, add_dvc, commit, make_toy


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A built project under git and DVC."""
    toy = make_toy(tmp_path_factory.mktemp("provenance") / "toy")
    add_dvc(toy)
    assert toy.build("quantize.bits=3").status == 0
    return toy


def told(toy: Toy, device: str = "phone") -> dict[str, Any]:
    statement = read_statement(Project(toy.root), device)
    assert statement is not None
    return statement


def source(toy: Toy) -> dict[str, Any]:
    return next(
        each for each in told(toy)["predicate"]["buildDefinition"]["resolvedDependencies"] if each["name"] == "source"
    )


def test_a_statement_tells_all_that_went_in(tracked: Toy) -> None:
    statement = told(tracked)
    manifest = (tracked.root / "artifacts/phone/manifest.json").read_bytes()
    assert statement["subject"] == [
        {"name": "manifest.json", "digest": {"sha256": hashlib.sha256(manifest).hexdigest()}}
    ]
    definition, details = (statement["predicate"][key] for key in ("buildDefinition", "runDetails"))
    assert definition["externalParameters"]["overrides"] == ["quantize.bits=3"]
    assert definition["internalParameters"]["quantize"]["config"] == {"bits": 3, "group_size": 32}
    dependencies = {each["name"]: each for each in definition["resolvedDependencies"]}
    weights = (tracked.root / "data/model/weights.txt").read_bytes()
    assert dependencies["data/model/weights.txt"]["digest"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert dependencies["numpy"]["uri"].startswith("pkg:pypi/numpy@")
    stages = [each["name"] for each in details["byproducts"]]
    assert stages == ["bundle", "load", "quantize", "convert", "validate", "package-phone"]
    assert str(tracked.root) not in json.dumps(statement)
    commit_of_it = tracked.call("git", "rev-parse", "HEAD").out.strip()
    assert dependencies["source"]["digest"] == {"gitCommit": commit_of_it}
    assert dependencies["source"]["annotations"]["dirty"] is False  # dvc.yaml and its like are written by builds


def test_changed_sources_are_told(tracked: Toy) -> None:
    tracked.write("toystages/new.py", "")
    tracked.edit("conf/quantize/int8.yaml", "8", "7")
    assert tracked.build("quantize.bits=3").nodes["load"] == "cached"
    assert source(tracked)["annotations"]["dirty"] is True
    assert source(tracked)["annotations"]["changed"] == ["conf/quantize/int8.yaml", "toystages/new.py"]
    commit(tracked)
    assert tracked.build("quantize.bits=3").nodes["load"] == "cached"
    assert source(tracked)["annotations"]["dirty"] is False


@pytest.mark.parametrize("how", ["assumed unchanged", "skipped", "ignored here only"])
def test_what_git_was_told_not_to_see_is_told(how: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    add_dvc(toy)
    changed = "toystages/load.py"
    if how == "ignored here only":
        changed = "toystages/extra.py"
        toy.write(".git/info/exclude", "extra.py\n")
    else:
        flag = "--assume-unchanged" if how == "assumed unchanged" else "--skip-worktree"
        assert toy.call("git", "update-index", flag, changed).status == 0
    toy.write(changed, "")
    assert toy.call("git", "status", "--porcelain").out == ""
    assert revision_of(Project(toy.root)).changed == (changed,)


def test_a_build_of_one_device_leaves_the_others_word(tracked: Toy) -> None:
    before = told(tracked, "tablet")
    assert tracked.build("device=[phone]", "quantize.bits=5").status == 0
    assert told(tracked)["predicate"]["buildDefinition"]["externalParameters"]["overrides"][-1] == "quantize.bits=5"
    assert told(tracked, "tablet") == before


@pytest.mark.parametrize("case", ["changed", "gone", "never"])
def test_no_statement_of_another_bundle(case: str, toy_built: Toy) -> None:
    """Without git there is no revision, which is no clean one."""
    assert source(toy_built)["annotations"] == {"changed": [], "dirty": True, "folder": ""}
    manifest = toy_built.root / "artifacts/phone/manifest.json"
    if case == "changed":
        manifest.write_text(manifest.read_text() + "\n")
    elif case == "gone":
        manifest.unlink()
    device = "watch" if case == "never" else "phone"
    assert read_statement(Project(toy_built.root), device) is None


def test_paths_outside_are_not_told(toy: Toy, tmp_path: Path) -> None:
    outside = tmp_path / "somebody" / "weights"
    outside.mkdir(parents=True)
    (outside / "weights.txt").write_text("1 2")
    assert toy.build(f"model.path={outside}").status == 0
    definition = told(toy)["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["overrides"] == ["model.path=<external>/weights"]
    assert "model.path/weights.txt" in {each["name"] for each in definition["resolvedDependencies"]}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://somebody:secret@example.org/team/project.git", "git+https://example.org/team/project.git"),
        ("git@example.org:team/project.git", "git+ssh://example.org/team/project.git"),
        ("ssh://git@example.org/team/project", "git+ssh://example.org/team/project"),
        ("/srv/project", None),
        ("../project", None),
    ],
)
def test_no_secret_of_the_remote_is_told(address: str, expected: str | None, tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    toy.call("git", "init", "-q")
    toy.call("git", "remote", "add", "origin", address)
    assert origin_of(Project(tmp_path)) == expected
