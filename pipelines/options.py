"""What the command line takes: commands, options and overrides, checked before anything else is loaded."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pipelines.errors import ConfigError, nearest, suggestion

KEEP = 5  # builds, besides those with a name, that `tapeout gc` keeps unless told otherwise

COMMANDS = {
    "build": "build what changed; gates decide the exit status",
    "plan": "the nodes, which would run, and why",
    "explain": "what a node is made of, and what changed since the last build",
    "report": "one self-contained HTML page of the last build",
    "builds": "what was built: number, time, name, overrides, and how it ended",
    "compare": "what differs between two builds: figures, answers, gates, results; by default the last two",
    "gc": f"remove what neither a named build nor the last {KEEP} nor the workspace needs",
    "stage": "run one node alone (what dvc.yaml calls)",
}
WITH_NAME = {"explain": "NODE", "stage": "NODE"}
ONLY_FOR = {  # options that other commands have no use for
    "jobs": ("build",),
    "keep_going": ("build",),
    "multirun": ("build",),
    "name": ("build",),
    "keep": ("gc",),
    "dry_run": ("gc",),
    "unname": ("gc",),
    "shared_cache": ("gc",),
    "html": ("compare",),
}
WITHOUT_WORDS = ("report", "builds", "gc")


class Parser(argparse.ArgumentParser):
    """argparse, with our errors."""

    def error(self, message: str) -> NoReturn:
        words = message.rpartition(": ")[2].split()
        guess = nearest(words[0], self._option_string_actions) if message.startswith("unrecognized") else ""
        raise ConfigError(message, hint=guess or "'tapeout --help' lists commands and options")

    def format_help(self) -> str:
        from pipelines.commands import summaries

        self.description = "\n".join(
            f"{f'{name} {WITH_NAME.get(name, str())}':<15} {text}" for name, text in (COMMANDS | summaries()).items()
        )
        return super().format_help()


def parse_common(arguments: list[str], command: str) -> argparse.Namespace:
    """Return --project and --config-dir, which alone may stand before a command that is not built in."""
    parser = Parser(prog="tapeout", allow_abbrev=False, add_help=False)
    add_places(parser)
    options, others = parser.parse_known_args(arguments)
    if others:
        raise ConfigError(
            f"'tapeout {command}' cannot take {others[0]} before its name",
            hint=f"its own options come after it: 'tapeout {command} --help' lists them",
        )
    return options


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the project and its configuration are."""
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="your own configuration groups"
    )
    parser.add_argument(
        "--project", default=".", metavar="DIR", help="the project, instead of the one around this folder"
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command, its options and the overrides. Raises ConfigError."""
    parser = Parser(
        prog="tapeout",
        epilog="Overrides are Hydra's: device=[pixel-8] quantize=int8 quantize.group_size=64 model.path=DIR",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", metavar="COMMAND", nargs="?", default="")
    parser.add_argument("words", metavar="OVERRIDE", nargs="*")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on standard output")
    add_places(parser)
    parser.add_argument("--jobs", type=int, metavar="N", help="cores that the workers take together; by default all")
    parser.add_argument(
        "--keep-going",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="after a failure, finish all that does not need it; the default",
    )
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        default=None,
        help="Hydra's sweeps: build each combination of quantize=int4,int8 quantize.bits=range(3,9) and the like",
    )
    parser.add_argument("--name", metavar="NAME", help="with build: a name for it; gc keeps what a named build needs")
    parser.add_argument(
        "--keep", type=int, metavar="N", help=f"with gc: keep the last N builds, besides named ones; by default {KEEP}"
    )
    parser.add_argument("--dry-run", action="store_true", default=None, help="with gc: only say what would go")
    parser.add_argument("--unname", metavar="NAME", help="with gc: take this name away first")
    parser.add_argument(
        "--shared-cache",
        action="store_true",
        default=None,
        help="with gc: no other project uses DVC's cache, though it lies outside this one",
    )
    parser.add_argument("--html", metavar="FILE", help="with compare: write it as a self-contained page")
    options = parser.parse_intermixed_args(arguments)
    if options.command not in COMMANDS:
        from pipelines.commands import added_commands

        hint = suggestion(options.command, [*COMMANDS, *added_commands()], "commands")
        what = f"there is no command '{options.command}'" if options.command else "a command is needed"
        raise ConfigError(what, hint=hint)
    for name, commands in ONLY_FOR.items():
        if getattr(options, name) is not None and options.command not in commands:
            raise ConfigError(
                f"'tapeout {options.command}' has no use for --{name.replace('_', '-')}",
                hint=f"it is for: {', '.join(commands)}",
            )
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: at least one worker is needed")
    if options.keep is not None and options.keep < 0:
        raise ConfigError(f"--keep {options.keep}: how many builds? 0 or more")
    options.target = None
    if options.command in WITH_NAME and options.words and "=" not in options.words[0]:
        options.target = options.words.pop(0)
    if options.command == "compare":
        options.builds = compared_builds(options.words)
        options.words = []
    if options.command in WITHOUT_WORDS and options.words:
        raise ConfigError(
            f"'tapeout {options.command}' has no use for: {' '.join(options.words)}",
            hint=f"tapeout {options.command}",
        )
    if options.name is not None and options.multirun:
        raise ConfigError(
            "--name names one build, and -m makes several",
            hint="build the one to keep again, with --name: it is cached",
        )
    if options.command in ("explain", "stage") and options.target is None:
        raise ConfigError(f"'tapeout {options.command}' needs a node's name", hint="'tapeout plan' lists them")
    return options


def compared_builds(words: list[str]) -> list[str]:
    """Return which two builds are to be compared: as given, one with the last, or the last with the one before."""
    if len(words) > 2:
        raise ConfigError(
            f"'tapeout compare' takes two builds, not {len(words)}: {' '.join(words)}",
            hint="each is a number or a name of 'tapeout builds', or last, last~1",
        )
    return [*words, *["last~1", "last"][len(words) :]]
