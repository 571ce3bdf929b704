"""The command line: `tapeout COMMAND [options] [overrides]`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from gc import set_threshold
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from pipelines.commands import added_commands, load_command, needs_no_project, split
from pipelines.errors import ConfigError, TapeoutError
from pipelines.loading import load_from_source
from pipelines.options import COMMANDS, KEEP, parse, parse_common
from pipelines.project import Project, find_project

if TYPE_CHECKING:
    from pipelines.plan import Plan
    from pipelines.summary import Summary


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Return 0: done and all gates pass; 1: a stage or a gate failed; 2: the configuration is wrong.

    Stopped by SIGINT or SIGTERM it returns 130 or 143.
    """
    words = sys.argv[1:] if arguments is None else arguments
    set_threshold(50_000)  # a plan is many small objects and little garbage: a fifth of a build's time
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        status = command(words)
        sys.stdout.flush()  # here, where it is known what to do if nobody reads it any more
        return status
    except TapeoutError as error:
        if "--json" in words and split(words)[1] not in COMMANDS:
            print(json.dumps({"error": error.message, "hint": error.hint}))
        print(f"tapeout: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # what reads our output has seen enough; what is still buffered goes nowhere
        if (descriptor := descriptor_of(sys.stdout)) is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        return 141
    except OSError as error:
        print(f"tapeout: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print("tapeout: stopped; what was finished is kept", file=sys.stderr)
        return 128 + int(stopped.args[0] if stopped.args else signal.SIGINT)


def command(arguments: list[str]) -> int:
    """Run a built-in command, or one that comes from outside."""
    before, name, after = split(arguments)
    added = added_commands() if name and name not in COMMANDS else {}
    if name in added:
        common = parse_common(before, name)
        try:
            project = opened_project(common)
        except ConfigError:
            if not needs_no_project(load_command(added[name])):
                raise
            project = Project(Path(common.project).resolve())
        return load_command(added[name])(after, project)
    options = parse(arguments)
    project = opened_project(options)
    with document(options):
        return run(options, project)


def opened_project(options: argparse.Namespace) -> Project:
    """Return the project, with its modules importable. Raises ConfigError."""
    project = find_project(Path(options.project).resolve(), tuple(Path(each).resolve() for each in options.config_dir))
    sys.path[:0] = [str(root) for root in project.import_roots if str(root) not in sys.path]
    load_from_source(project.import_roots)
    return project


@contextlib.contextmanager
def document(options: argparse.Namespace) -> Iterator[None]:
    """With --json, keep standard output for the one document: what else is printed goes to standard error."""
    options.document = sys.stdout
    if not options.json:
        yield
        return
    with contextlib.ExitStack() as stack:
        if descriptor_of(sys.stdout) == 1:
            sys.stdout.flush()
            saved = os.dup(1)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 1)
            options.document = stack.enter_context(open(saved, "w", encoding="utf-8", closefd=False))
            os.dup2(2, 1)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def descriptor_of(stream: IO[str]) -> int | None:
    """Return the file descriptor under a stream, or None where there is none, as in a test."""
    try:
        return stream.fileno()
    except OSError:
        return None


def show_document(options: argparse.Namespace, value: Any) -> None:
    """Print the document that --json asks for."""
    print(json.dumps(value), file=options.document, flush=True)


def run(options: argparse.Namespace, project: Project) -> int:
    """Run the command of `options` in `project`."""
    alone = {"builds": builds, "gc": gc, "build": build, "compare": compare}
    if options.command in alone:
        return alone[options.command](project, options)
    if options.command == "report":
        from pipelines.report import write_report

        print(project.relative(write_report(project)))
        return 0

    from pipelines.build import run_stage
    from pipelines.config import load_config
    from pipelines.display import make_display
    from pipelines.params import check_described, in_experiment, load_params
    from pipelines.plan import make_plan

    experiment = options.command == "stage" and in_experiment()
    config = load_params(project) if experiment else load_config(project, options.words)
    made = make_plan(project, config)
    if experiment:
        check_described(made, options.target)
    if options.command == "plan":
        return plan(project, made, options)
    if options.command == "explain":
        return explain(project, made, options)
    summary = run_stage(project, config, made, options.target, make_display())
    if options.json:
        show_document(options, summary.to_json())
    if experiment:  # figures out of bounds are kept too; what needs them does not run
        return 1 if any(node.status == "failed" for node in summary.nodes) else 0
    return 0 if summary.passed else 1


def build(project: Project, options: argparse.Namespace) -> int:
    """Build one configuration or, with -m, each of a sweep. All are checked before anything runs."""
    from pipelines import publish
    from pipelines.build import build
    from pipelines.config import load_config
    from pipelines.display import make_display
    from pipelines.history import check_name
    from pipelines.plan import make_plan

    if options.name is not None:
        check_name(options.name)
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
        summary, publisher = build(
            project, config, plan, display, options.jobs, options.keep_going is not False, options.name
        )
        summaries.append((" ".join(words), summary))
        if not options.json:
            show_summary(summary)
        elif not options.multirun:
            show_document(options, summary.to_json())
        publish.finish(publisher, project, config, summary, display)
    if options.multirun:
        show_sweep(options, summaries)
    return 0 if all(summary.passed for _, summary in summaries) else 1


def show_summary(summary: Summary) -> None:
    """Print what the build came to: what stages say of their results, and a table for each device."""
    from pipelines.tables import build_table, summary_lines

    print("".join(f"{line}\n" for line in [*summary_lines(summary), *build_table(summary)]), end="")
    counts = {
        status: sum(node.status == status for node in summary.nodes)
        for status in ("built", "cached", "failed", "skipped")
    }
    ended = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    shared = summary.shared.words if summary.shared else []
    print("; ".join([ended, *shared, f"{summary.seconds:.1f} s"]))


def show_sweep(options: argparse.Namespace, summaries: list[tuple[str, Summary]]) -> None:
    """Print what a sweep came to: as JSON, or a table of its runs."""
    if options.json:
        show_document(options, {"runs": [{"overrides": name, **summary.to_json()} for name, summary in summaries]})
    else:
        from pipelines.tables import sweep_table

        print("\n".join(["", *sweep_table(summaries)]))


def plan(project: Project, plan: Plan, options: argparse.Namespace) -> int:
    """Print the graph: which nodes would run, and why."""
    from pipelines.explain import graph, preview
    from pipelines.sharing import sharing_of

    rows = list(preview(project, plan))
    if options.json:
        show_document(options, {"nodes": [row.to_json() for row in rows], "saved": sharing_of(plan).saved})
    else:
        print("\n".join(graph(plan, rows)))
    return 0


def explain(project: Project, plan: Plan, options: argparse.Namespace) -> int:
    """Print what a node is made of."""
    from pipelines.explain import explain

    account = explain(project, plan, options.target)
    if options.json:
        show_document(options, account.to_json())
    else:
        print("\n".join(account.lines()))
    return 0


def builds(project: Project, options: argparse.Namespace) -> int:
    """Print what was built, the newest first."""
    from pipelines.history import history_of, table

    found = history_of(project).builds
    if options.json:
        show_document(options, {"builds": [build.to_json() for build in found]})
    else:
        print("\n".join(table(found)) if found else "no build yet")
    return 0


def compare(project: Project, options: argparse.Namespace) -> int:
    """Print what differs between two builds; with --html, write it as a page."""
    from pipelines.compare import changes
    from pipelines.compared_table import lines
    from pipelines.history import history_of
    from pipelines.past import find_build

    history = history_of(project)
    found = changes(project, *(find_build(history, text) for text in options.builds))
    if options.html:
        from pipelines.compared_page import write_page

        path = write_page(Path(options.html), found)
        print(f"wrote {path}", file=sys.stderr)
    if options.json:
        show_document(options, found)
    else:
        print("\n".join(lines(found)))
    return 0


def gc(project: Project, options: argparse.Namespace) -> int:
    """Remove what is not needed any more, and print what that was."""
    from pipelines.checkout import opened
    from pipelines.garbage import collect

    keep, dry = KEEP if options.keep is None else options.keep, bool(options.dry_run)
    with opened(project, waiting) as checkout:
        garbage = collect(checkout, keep, options.unname, bool(options.shared_cache), dry)
        found = {"dry_run": dry, **garbage.to_json(checkout)}
        if options.json:
            show_document(options, found)
        else:
            print("\n".join(garbage.lines(checkout, dry)))
    return 0


def waiting() -> None:
    print("another build has this project; waiting for it", file=sys.stderr)


def stop(number: int, frame: FrameType | None) -> None:
    """Stop: workers are ended, what is finished is kept. Once is enough, and the end comes within seconds."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
