"""Every library that a stage's code imports is among the `libraries` of its YAML, so that its version is in the key."""

import ast
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from pipelines.digests import Digests
from pipelines.sources import Sources
from stages.data.fonts import TRAINING, UNSEEN

ROOT = Path(__file__).parent.parent
LAZY = {"stages.artifacts"}  # its methods import what their callers import too
CARRIERS = {"stages.models.sources"}  # what it fetches is known by its contents, whoever carried it
STAGES = {
    f"{path.stem}:{name}": stage
    for path in sorted((ROOT / "conf/pipeline").glob("*.yaml"))
    for name, stage in yaml.safe_load(path.read_text())["stages"].items()
}


@pytest.mark.parametrize("name", STAGES)
def test_libraries_are_declared(name: str, tmp_path: Path) -> None:
    stage = STAGES[name]
    closure = Sources([ROOT], Digests(tmp_path / "digests.json")).closure(stage["run"].rpartition(".")[0])
    wanted: set[str] = set()
    for module, path in closure.items():
        if module in CARRIERS:
            continue
        wanted |= distributions(path, top_only=module in LAZY)
    if "stages.data.fonts" in closure:
        wanted |= {package.replace("_", "-") for package, _, _ in (*TRAINING, *UNSEEN)} | {"python"}
    missing = wanted - set(stage["libraries"])
    assert not missing, f"conf/pipeline: {name}: add to libraries: {sorted(missing)}"


@cache
def owners() -> Mapping[str, list[str]]:
    """The distributions that provide each importable name."""
    return packages_distributions()


def distributions(path: Path, top_only: bool) -> set[str]:
    """The distributions that a file imports, at its top or anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    known = owners()
    return {known[name][0].lower() for name in names - set(sys.stdlib_module_names) if name in known} - {"tapeout"}
