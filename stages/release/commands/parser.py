"""How the commands of a release take their arguments: argparse, with our errors."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from pipelines.errors import ConfigError, nearest, suggestion


class Parser(argparse.ArgumentParser):
    """Raises ConfigError, with the nearest option, for what it cannot take."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"tapeout {command}", description=description, allow_abbrev=False)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; an option that is none is told of before one that is missing: it may be that one, mistyped."""
        for word in args or ():
            name = word.partition("=")[0]
            if word == "--":
                break
            if word.startswith("--") and name not in self._option_string_actions:
                self.error(f"unrecognized arguments: {name}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        words = message.rpartition(": ")[2].split()
        guess = nearest(words[0], self._option_string_actions) if message.startswith("unrecognized") else ""
        name = self.prog.removeprefix("tapeout ")
        if words[:1] in (["--project"], ["--config-dir"]):
            guess = f"it comes before the command: tapeout {words[0]} DIR {name}"
        raise ConfigError(f"{name}: {message}", hint=guess or f"'{self.prog} --help' lists its options")


def action_of(command: str, arguments: list[str], actions: dict[str, str]) -> tuple[str, list[str]]:
    """Return the action that `tapeout COMMAND ACTION` names, and the arguments after it.

    actions: {name: what it does}. Raises ConfigError for an unknown one; --help prints them and exits.
    """
    parser = argparse.ArgumentParser(
        prog=f"tapeout {command}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join(f"{name:<12} {text}" for name, text in actions.items()),
        epilog=f"'tapeout {command} ACTION --help' lists an action's options",
    )
    parser.add_argument("action", metavar="ACTION")
    if not arguments or arguments[0] in ("-h", "--help"):
        if arguments:
            parser.parse_args(["--help"])
        raise ConfigError(f"'tapeout {command}' needs an action", hint=f"one of: {', '.join(actions)}")
    if arguments[0] not in actions:
        raise ConfigError(
            f"'tapeout {command}' has no action '{arguments[0]}'", hint=suggestion(arguments[0], actions, "actions")
        )
    return arguments[0], arguments[1:]
