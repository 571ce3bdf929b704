"""Commands that are added through entry points."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from pipelines import cli, commands
from pipelines.errors import ConfigError

PROJECT = Path(__file__).parents[2]


def greet(arguments, project):
    """say hello

    The rest is not for --help.
    """
    if "--wrong" in arguments:
        raise ConfigError("a greeting has no --wrong", hint="leave it out")
    print(project.root.name, *arguments)
    return 3


@pytest.fixture
def added(monkeypatch, tmp_path):
    """`greet`, `broken` (which cannot be imported) and `plan` (which is built in) are added; a project is here."""
    targets = {"greet": f"{__name__}:greet", "broken": "no.such.module:run", "plan": f"{__name__}:greet"}
    entries = EntryPoints(EntryPoint(name, target, commands.GROUP) for name, target in targets.items())
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries.select(group=group))
    (tmp_path / "conf").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    return tmp_path


def test_what_comes_after_its_name_is_the_commands_own(added, capsys):
    status = cli.main(["--project", str(added), "greet", "--json", "a=b", "--project", "x"])
    assert status == 3 and capsys.readouterr().out == f"{added.name} --json a=b --project x\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["greet", "--wrong"], "a greeting has no --wrong\n  leave it out"),
        (["--json", "greet"], "'tapeout greet' cannot take --json before its name"),
        (["broken"], "the command 'broken' is no.such.module:run, which cannot be imported"),
        (["gret"], "there is no command 'gret'\n  did you mean 'greet'?"),
        (["biuld"], "did you mean 'build'?"),
    ],
)
def test_mistakes_are_one_message(added, capsys, arguments, message):
    assert cli.main(["--project", str(added), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_mistake_is_a_document_where_one_was_asked_for(added, capsys):
    assert cli.main(["--project", str(added), "greet", "--wrong", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": "a greeting has no --wrong", "hint": "leave it out"}


def test_a_command_may_need_no_project(added, capsys, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pyproject.toml").unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["greet"]) == 2 and "no project here" in capsys.readouterr().err
    monkeypatch.setitem(vars(greet), "needs_no_project", False)
    commands.anywhere(greet)
    assert cli.main(["greet"]) == 3 and capsys.readouterr().out == "elsewhere\n"


def test_a_built_in_command_is_not_replaced(added, capsys):
    assert cli.main(["--project", str(added), "plan"]) != 3


def test_help_lists_them(added, capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert "greet           say hello\n" in shown and "not for --help" not in shown
    assert "broken          (the command 'broken' is" in shown


def test_a_built_in_command_does_not_look_for_added_ones():
    command = [sys.executable, "-X", "importtime", "-c", "import pipelines.cli"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "importlib.metadata" not in result.stderr


def test_the_project_adds_run_and_new_checkpoint():
    assert {"run", "new-checkpoint"} <= set(commands.added_commands())
