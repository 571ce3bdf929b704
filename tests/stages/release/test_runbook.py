"""docs/runbook.md, run from top to bottom: what it says to type exists, and leads where it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from pipelines.commands import added_commands, load_command
from pipelines.project import Project
from stages.release.commands import publish, repository
from tests.stages.release.bundles import make_bundle
from tests.stages.release.projects import FILES, statement_of

RUNBOOK = Path(__file__).parents[3] / "docs/runbook.md"
FOLDERS = {"KEYS": "keys", "UPDATES": "updates", "CHECK": "check", "HOST": "host"}
SHELL = {"cp", "mkdir", "mv", "rm"}  # run as they are
ELSEWHERE = {"export", "git", "rsync"}  # not this project's


def commands() -> list[str]:
    """The lines of the runbook that are to be typed."""
    return [line.strip() for line in RUNBOOK.read_text().splitlines() if line.startswith("    ")]


def test_every_command_of_the_runbook_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path / "project")
    for name, content in FILES.items():
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        (project.root / name).write_text(content.replace("TRACKING", "none"))
    monkeypatch.chdir(project.root)
    monkeypatch.setattr("stages.release.commands.release.read_statement", statement_of)  # what a build would write
    for name, folder in FOLDERS.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    named = {line.split()[1] for line in commands() if line.startswith("tapeout ")} - {"build"}
    known = {name: load_command(entry) for name, entry in added_commands().items() if name in named}

    def run(*words: str) -> str:
        capsys.readouterr()
        assert known[words[0]](list(words[1:]), project) == 0, words
        return capsys.readouterr().out

    for line in commands():
        words = shlex.split(os.path.expandvars(line), comments=True)
        if words[:2] == ["tapeout", "build"]:
            build(project.root, words[2:])
        elif words[0] == "tapeout":
            assert "clients refuse" not in run(*with_options(words[1:])), line
        elif words[0] in SHELL:
            shell(words)
        else:
            assert words[0] in ELSEWHERE, line
    found = json.loads(run("repository", "status", str(tmp_path / "updates"), "--json"))
    names = {role["role"]: [key["name"].split()[0] for key in role["keys"]] for role in found["roles"]}
    assert names == {
        "root": ["root-alice", "root-dave", "root-erin"],
        "targets": ["release-3"],
        "snapshot": ["online-3"],
        "timestamp": ["online-3"],
        "channel-stable": ["channel-stable-2"],
        "channel-beta": ["channel-beta"],
    }
    # a client that began with the first root came all the way
    assert (
        json.loads(run("fetch", "--to", str(tmp_path / "check"), "--status", "--json"))["current"]["version"] == "1.0.0"
    )


def build(project: Path, words: list[str]) -> None:
    """Leave what a build would leave: the same for the same version."""
    (version,) = [word.removeprefix("package.version=") for word in words]
    shutil.rmtree(project / "artifacts", ignore_errors=True)
    make_bundle(project / "artifacts/pixel-8", "pixel-8", version, seed=int(version.replace(".", "")))


def with_options(words: list[str]) -> list[str]:
    """Leave keys in clear, since a hundred derivations of a passphrase take too long here; the models are made up."""
    more = {("key", "new"): ["--no-passphrase"], ("fetch", words[1]): ["--self-test", "off"]}
    return [*words, *more.get((words[0], words[1]), [])]


def shell(words: list[str]) -> None:
    name, *paths = [word for word in words if not word.startswith("-")]
    *sources, target = paths
    if name == "mkdir":
        Path(target).mkdir(parents=True)
    elif name == "rm":
        for path in paths:
            Path(path).unlink()
    else:
        for source in sources:
            (shutil.copy if name == "cp" else shutil.move)(source, target)


def test_the_runbook_names_options_that_exist() -> None:
    parsers = [*map(repository.parser_of, repository.ACTIONS), publish.parser()]
    known = {option for parser in parsers for option in parser._option_string_actions} | {"--force"}
    named = set(re.findall(r"`(--[a-z-]+)", RUNBOOK.read_text()))
    assert {"--expires", "--prune", "--keep"} <= named <= known
    for action in repository.ACTIONS:
        assert f"tapeout repository {action}" in RUNBOOK.read_text() or action == "channel"
