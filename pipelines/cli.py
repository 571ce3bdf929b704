"""The command line: `tapeout COMMAND [options] [overrides]`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.errors import ConfigError, TapeoutError, nearest, suggestion
from pipelines.project import Project, find_project

if TYPE_CHECKING:
    from pipelines.summary import Summary

COMMANDS = {
    "build": "build what changed; gates decide the exit status",
    "plan": "the nodes, which would run, and why",
    "explain": "what a node is made of, and what changed since the last build",
    "verify": "rehash the store and the workspace, or a bundle, and name what is damaged",
    "report": "one self-contained HTML page of the last build",
    "stage": "run one node alone (what dvc.yaml calls)",
}
WITH_NAME = {"explain": "NODE", "stage": "NODE", "verify": "PATH"}
ONLY_FOR = {
    "jobs": ("build",),
    "keep_going": ("build",),
    "multirun": ("build",),
}  # options that other commands have no use for


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Return 0: done and all gates pass; 1: a stage or a gate failed; 2: the configuration is wrong.

    Stopped by SIGINT or SIGTERM it returns 130 or 143.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        project = find_project(
            Path(options.project).resolve(), tuple(Path(each).resolve() for each in options.config_dir)
        )
        sys.path[:0] = [str(root) for root in project.import_roots if str(root) not in sys.path]
        return run(options, project)
    except TapeoutError as error:
        print(f"tapeout: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # what reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"tapeout: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print("tapeout: stopped; what was finished is kept", file=sys.stderr)
        return 128 + int(stopped.args[0] if stopped.args else signal.SIGINT)


class Parser(argparse.ArgumentParser):
    """argparse, with our errors."""

    def error(self, message: str) -> NoReturn:
        words = message.rpartition(": ")[2].split()
        guess = nearest(words[0], self._option_string_actions) if message.startswith("unrecognized") else ""
        raise ConfigError(message, hint=guess or "'tapeout --help' lists commands and options")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command, its options and the overrides. Raises ConfigError."""
    parser = Parser(
        prog="tapeout",
        description="\n".join(
            f"{f'{name} {WITH_NAME.get(name, str())}':<14} {text}" for name, text in COMMANDS.items()
        ),
        epilog="Overrides are Hydra's: device=[pixel-8] quantize=int8 quantize.group_size=64 model.path=DIR",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", metavar="COMMAND", nargs="?", default="")
    parser.add_argument("words", metavar="OVERRIDE", nargs="*")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on standard output")
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="your own configuration groups"
    )
    parser.add_argument(
        "--project", default=".", metavar="DIR", help="the project, instead of the one around this folder"
    )
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
    options = parser.parse_intermixed_args(arguments)
    if options.command not in COMMANDS:
        hint = suggestion(options.command, COMMANDS, "commands")
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
    options.name = None
    if options.command in WITH_NAME and options.words and (options.command == "verify" or "=" not in options.words[0]):
        options.name = options.words.pop(0)
    if options.command in ("verify", "report") and options.words:
        raise ConfigError(
            f"'tapeout {options.command}' has no use for: {' '.join(options.words)}",
            hint=f"tapeout {options.command} {'[PATH]' if options.command == 'verify' else ''}".rstrip(),
        )
    if options.command in ("explain", "stage") and options.name is None:
        raise ConfigError(f"'tapeout {options.command}' needs a node's name", hint="'tapeout plan' lists them")
    return options


def run(options: argparse.Namespace, project: Project) -> int:
    """Run the command of `options` in `project`."""
    if options.command == "verify":
        return verify(project, options)
    if options.command == "report":
        from pipelines.report import write_report

        print(project.relative(write_report(project)))
        return 0

    if options.command == "build":
        return build(project, options)
    from pipelines.build import preview, run_stage
    from pipelines.config import load_config
    from pipelines.display import make_display
    from pipelines.params import check_described, in_experiment, load_params
    from pipelines.plan import make_plan

    experiment = options.command == "stage" and in_experiment()
    config = load_params(project) if experiment else load_config(project, options.words)
    plan = make_plan(project, config)
    if experiment:
        check_described(plan, options.name)
    if options.command == "plan":
        return show_plan(options, list(preview(project, plan)))
    if options.command == "explain":
        return explain(project, plan, options)
    summary = run_stage(project, config, plan, options.name, make_display())
    if options.json:
        print(json.dumps(summary.to_json()), flush=True)
    if experiment:  # figures out of bounds are kept too; what needs them does not run
        return 1 if any(node.status == "failed" for node in summary.nodes) else 0
    return 0 if summary.passed else 1


def build(project: Project, options: argparse.Namespace) -> int:
    """Build one configuration or, with -m, each of a sweep. All are checked before anything runs."""
    from pipelines import publish
    from pipelines.build import build
    from pipelines.config import load_config
    from pipelines.display import make_display
    from pipelines.plan import make_plan

    runs = [options.words]
    if options.multirun:
        from pipelines.sweep import combinations

        runs = combinations(project, options.words)
    configs = [load_config(project, words) for words in runs]
    plans = [make_plan(project, config) for config in configs]
    summaries = []
    for words, config, plan in zip(runs, configs, plans, strict=True):
        display = make_display()
        if options.multirun:
            display.note(f"--- {' '.join(words)}")
        summary, publisher = build(project, config, plan, display, options.jobs, options.keep_going is not False)
        summaries.append((" ".join(words), summary))
        if not options.json:
            show_summary(summary)
        elif not options.multirun:
            print(json.dumps(summary.to_json()), flush=True)
        publish.finish(publisher, project, config, summary, display)
    if options.multirun:
        show_sweep(options, summaries)
    return 0 if all(summary.passed for _, summary in summaries) else 1


def show_summary(summary: Summary) -> None:
    """Print what the build came to: a table for each device."""
    from pipelines.tables import device_table

    for device, metrics in summary.metrics.items():
        gates = [gate for gate in summary.gates if gate["device"] == device]
        print("\n".join(device_table(device, metrics, gates, summary.bundles.get(device))))
    counts = {
        status: sum(node.status == status for node in summary.nodes)
        for status in ("built", "cached", "failed", "skipped")
    }
    print(", ".join(f"{count} {status}" for status, count in counts.items() if count) + f"; {summary.seconds:.1f} s")


def show_sweep(options: argparse.Namespace, summaries: list[tuple[str, Summary]]) -> None:
    """Print what a sweep came to: as JSON, or a table of its runs."""
    if options.json:
        print(json.dumps({"runs": [{"overrides": name, **summary.to_json()} for name, summary in summaries]}))
    else:
        from pipelines.tables import sweep_table

        print("\n".join(["", *sweep_table(summaries)]))


def show_plan(options: argparse.Namespace, rows: list[tuple[Any, str, str]]) -> int:
    """Print the plan."""
    if options.json:
        nodes = [
            {"name": node.name, "stage": node.stage.name, "devices": node.devices, "status": status, "why": why}
            for node, status, why in rows
        ]
        print(json.dumps({"nodes": nodes}))
    else:
        for node, status, why in rows:
            print(f"{node.name:<28} {status:<8} {why}".rstrip())
    return 0


def explain(project: Project, plan: Any, options: argparse.Namespace) -> int:
    """Print what a node is made of."""
    from pipelines.checkout import Checkout
    from pipelines.explain import account, differences

    node, checkout = plan.node(options.name), Checkout(project, looking=True)
    inputs = {}
    for parameter, need in node.inputs.items():
        shown = checkout.shown(plan.nodes[need])
        inputs[parameter] = shown.digest if shown else "not built"
    ingredients, old = checkout.keys.ingredients(node, inputs), checkout.last(node)
    if options.json:
        changes = list(differences(old.ingredients, ingredients)) if old else ["not built before"]
        print(json.dumps({"name": node.name, "ingredients": ingredients, "changes": changes}))
    else:
        print("\n".join(account(checkout, node, ingredients)))
    return 0


def verify(project: Project, options: argparse.Namespace) -> int:
    """Print what is damaged; exit status 1 if anything is."""
    from pipelines.checkout import opened
    from pipelines.verify import verify_bundle, verify_store, verify_workspace

    if options.name:
        damaged = list(verify_bundle(Path(options.name)))
    else:
        with opened(
            project, lambda: print("another build has this project; waiting for it", file=sys.stderr)
        ) as checkout:
            damaged = [*verify_store(checkout), *verify_workspace(checkout)]
    if options.json:
        print(json.dumps({"damaged": damaged}))
    else:
        print("\n".join(damaged) or "nothing is damaged")
    return 1 if damaged else 0


def stop(number: int, frame: FrameType | None) -> None:
    """Stop: workers are ended, what is finished is kept. Once is enough, and the end comes within seconds."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
