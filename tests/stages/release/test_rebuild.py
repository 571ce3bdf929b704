"""A bundle built again from its provenance, in a project with quick stages."""

import json
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, VerificationError
from pipelines.project import Project
from pipelines.provenance import read_statement
from stages.release.manifest import read
from stages.release.signing.rebuild import rebuild
from tests.pipelines.toy import Toy, add_dvc, commit, make_toy

PACKAGE = """
from stages.release.manifest import write_manifest
from toystages.folder import Folder


def package(model: Folder, validation: Folder, device, work):
    (work.out / "model.bin").write_text(model.text("graph/model.bin"))
    value = {
        "name": "toy", "version": "1.0.0", "device": {"name": device.name}, "runtime": "onnxruntime",
        "model": {"runtime": "onnxruntime", "files": {"decoder": "model.bin"}}, "weights": [], "validation": {},
        "licence": {"weights": None, "files": []}, "self_test": [],
        "documents": {"model_card": "model.bin", "bill_of_materials": "model.bin"},
    }
    write_manifest(work.out, value)
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = make_toy(tmp_path_factory.mktemp("rebuild") / "toy")
    toy.write("toystages/package.py", PACKAGE)
    add_dvc(toy)
    assert toy.build("quantize.bits=3").status == 0
    return toy


def again(toy: Toy, source: Path | None = None, settings: tuple[str, ...] = ()) -> list[str]:
    project = Project(toy.root)
    statement = read_statement(project, "phone")
    assert statement is not None
    return rebuild(read(toy.root / "artifacts/phone"), statement, project, source, settings)


def test_the_same_bytes_come_out(toy: Toy) -> None:
    toy.edit("toystages/convert.py", "for", "for another")  # what lies in the folder now does not count
    assert again(toy) == []
    toy.edit("toystages/convert.py", "for another", "for")


def test_other_sources_give_other_bytes_and_are_named(toy: Toy, tmp_path: Path) -> None:
    other = make_toy(tmp_path / "other")
    other.write("toystages/package.py", PACKAGE)
    other.edit("toystages/convert.py", "} for {", "} fit for {")
    other.write(".gitignore", "/artifacts\n/.tapeout\n")
    other.call("git", "init", "-q")
    found = again(toy, other.root)
    assert found[0].startswith("model.bin: sha256 ")
    assert found[-1] == "the first stage to give something else: convert"


def test_sources_that_nobody_has(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no project's folder"):
        again(toy, tmp_path)
    statement = read_statement(Project(toy.root), "phone")
    assert statement is not None
    text = json.dumps(statement)
    manifest = read(toy.root / "artifacts/phone")
    commit_of_it = toy.call("git", "rev-parse", "HEAD").out.strip()
    for old, new, expected in (
        (commit_of_it, "0" * 40, "does not hold the commit 000"),
        ('"dirty": false', '"dirty": true', "never committed"),
        (f'"digest": {{"gitCommit": "{commit_of_it}"}}, ', "", "in no git repository"),
        ('"quantize.bits=3"', '"model.path=<external>/weights"', "something outside the project"),
    ):
        assert old in text
        with pytest.raises(ConfigError, match=expected):
            rebuild(manifest, json.loads(text.replace(old, new)), Project(toy.root), None)
    for new, said in (
        ("quantize.bist=3", "do not build"),
        ("--help", "an option of a command"),
        ("--project=elsewhere", "an option of a command"),
    ):
        with pytest.raises(VerificationError, match=said):
            rebuild(manifest, json.loads(text.replace("quantize.bits=3", new)), Project(toy.root), None)
    for folder in ("../outside", "/outside"):
        changed = json.loads(text)
        changed["predicate"]["buildDefinition"]["externalParameters"]["config_dirs"] = [folder]
        with pytest.raises(VerificationError, match="no path inside a project"):
            rebuild(manifest, changed, Project(toy.root), None)


def test_a_build_that_does_not_make_the_bundle_proves_nothing(toy: Toy) -> None:
    statement = read_statement(Project(toy.root), "phone")
    text = json.dumps(statement).replace('"quantize.bits=3"', '"device=[tablet]"')
    found = rebuild(read(toy.root / "artifacts/phone"), json.loads(text), Project(toy.root), None)
    assert found == ["built again, there is no bundle for phone: a stage or gate failed, or it was not asked for"]


@pytest.mark.parametrize("name", [".tapeout/ledger/x", "artifacts/phone/manifest.json", "artifacts/build/load.json"])
def test_sources_that_bring_results_along(name: str, toy: Toy, tmp_path: Path) -> None:
    source = make_toy(tmp_path / "source")
    source.call("git", "init", "-q")
    source.write(name, "")
    with pytest.raises(VerificationError, match="which a build makes"):
        again(toy, source.root)


@pytest.mark.parametrize("target", ["/etc", "../../outside"])
def test_a_link_out_of_the_commit(target: str, toy: Toy) -> None:
    statement = read_statement(Project(toy.root), "phone")
    before = toy.call("git", "rev-parse", "HEAD").out.strip()
    (toy.root / "away").symlink_to(target)
    commit(toy)
    after = toy.call("git", "rev-parse", "HEAD").out.strip()
    (toy.root / "away").unlink()
    assert toy.call("git", "reset", "-q", "--hard", before).status == 0
    changed = json.loads(json.dumps(statement).replace(before, after))
    with pytest.raises(VerificationError, match=f"leads to {target}"):
        rebuild(read(toy.root / "artifacts/phone"), changed, Project(toy.root), None)


def test_what_lay_outside_can_be_said(toy: Toy, tmp_path: Path) -> None:
    outside = tmp_path / "weights"
    outside.mkdir()
    (outside / "weights.txt").write_text("3 4\n")
    assert toy.build(f"model.path={outside}").status == 0
    with pytest.raises(ConfigError) as caught:
        again(toy)
    assert "--set model.path=PATH" in caught.value.hint
    assert again(toy, settings=(f"model.path={outside}",)) == []
    with pytest.raises(ConfigError, match="not built with that"):
        again(toy, settings=(f"model.path={outside}", "quantize.bits=4"))
