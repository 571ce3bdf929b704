"""Commands that come from outside the framework: entry points of the group `tapeout.commands`.

    [project.entry-points."tapeout.commands"]
    run = "stages.runtimes.command:run"

Each names a function(arguments: list[str], project: Project) that returns the exit status and raises TapeoutErrors; the
first line of its docstring is what --help shows. They are looked up only for a command that is not built in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError
from pipelines.project import Project

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "tapeout.commands"
Command = Callable[[list[str], Project], int]


def added_commands() -> dict[str, EntryPoint]:
    """Return the commands that installed packages add, by name."""
    from importlib.metadata import entry_points  # takes as long as all else that `tapeout plan` imports

    return {entry.name: entry for entry in sorted(entry_points(group=GROUP))}


def load_command(entry: EntryPoint) -> Command:
    """Return the function of an added command. Raises ConfigError where it cannot be imported."""
    try:
        command: Command = entry.load()
    except Exception as cause:  # a module may fail in any way
        raise ConfigError(
            f"the command '{entry.name}' is {entry.value}, which cannot be imported: {cause}",
            hint="install the package that adds it again",
        ) from cause
    return command


def anywhere(command: Command) -> Command:
    """Mark a command that needs no project: outside of one it is given the folder that it is called in."""
    vars(command)["needs_no_project"] = True
    return command


def needs_no_project(command: Command) -> bool:
    return bool(getattr(command, "needs_no_project", False))


def summaries() -> dict[str, str]:
    """Return {added command: the first line of what it says of itself}."""
    found = {}
    for name, entry in added_commands().items():
        try:
            found[name] = (load_command(entry).__doc__ or entry.value).strip().partition("\n")[0]
        except ConfigError as error:
            found[name] = f"({error.message})"
    return found


def split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """Return what comes before the command, the command ("" where there is none), and what comes after it."""
    position = 0
    while position < len(arguments) and arguments[position].startswith("-"):
        position += (
            2 if arguments[position] in ("--project", "--config-dir", "--jobs", "--name", "--keep", "--html") else 1
        )
    command = arguments[position] if position < len(arguments) else ""
    return arguments[:position], command, arguments[position + 1 :]
