"""`tapeout release`: what is released, to whom, and who decided it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.config import TrackingConfig, load_config
from pipelines.errors import ConfigError, suggestion
from pipelines.project import Project
from pipelines.provenance import read_statement
from stages.release.bundles.folder import printable
from stages.release.commands.parser import Parser, action_of
from stages.release.history.decision import Decision, channels_of
from stages.release.history.entry import Entry
from stages.release.history.history import History, Log, Writing, check_expected
from stages.release.history.state import State, state_of
from stages.release.layout import Releases
from stages.release.signing.keys import load_signing_key, trusted_keys

ACTIONS = {
    "create": "archive, sign and record the bundles of the last build",
    "promote": "make a release a channel's champion, or an arm that a share of installations gets",
    "rollback": "end a channel's arms; where it has none, bring back the champion before",
    "retire": "revoke a release everywhere",
    "status": "what is released where",
    "history": "who did what when",
}
TRACKING = re.compile(r"\+{0,2}tracking(\.\w+)?=")


def release(arguments: list[str], project: Project) -> int:
    """create, promote, roll back and retire releases; their status and signed history"""
    action, rest = action_of("release", arguments, ACTIONS)
    tracking = [word for word in rest if TRACKING.match(word)]
    options = parse(action, [word for word in rest if word not in tracking])
    if action == "status":
        return status(options, project, tracking)
    if action == "history":
        return history(options, project)
    return change(action, options, project, tracking)


def change(action: str, options: argparse.Namespace, project: Project, tracking: list[str]) -> int:
    """Decide and record; then have MLflow's registry follow."""
    releases = Releases(project)
    registry = load_config(project, tracking).tracking
    decide = DECISIONS[action](options, project)
    key = load_signing_key(options.key)
    with History(releases.history).writing(trusted_keys((), releases), waiting) as writing:
        if writing.log.torn:
            note(f"{releases.history}: dropping {writing.log.torn} bytes, the unfinished entry of a killed command")
        writing.check_key(key)
        decision, entry = decide(state_of(writing.log.entries), writing, key), None
        if decision.changes:
            entry = writing.append(key, options.who, action, reason=options.reason, **decision.to_entry())
        sequence = len(writing.log.entries)
    if not options.json:  # before MLflow is waited for: from here on it holds, whatever becomes of this process
        print("\n".join(map(printable, decision.lines)))
        print(f"entry {entry.head}" if entry else "nothing to do, and nothing recorded", flush=True)
        if entry and decision.channels:
            print("installations learn of it with the next 'tapeout publish DIR'", flush=True)
    why = followed(project, registry, sequence)
    if options.json:
        print(json.dumps(changed_json(decision, entry, registry, why)))
    if why:
        note(f"MLflow's registry lags behind the history, until the next release command brings it up. Why: {why}")
    return 0


def create(options: argparse.Namespace, project: Project) -> Callable[..., Decision]:
    """Look at the bundles before anybody has to wait; write them when it is this process's turn."""
    from stages.release.history.releasing import candidates, creation

    found = candidates(project, options.devices, options.version, options.allow_dirty, read_statement)

    def decide(state: State, writing: Writing, key: Any) -> Decision:
        return creation(Releases(project), state, found, key)

    return decide


def promote(options: argparse.Namespace, project: Project) -> Callable[..., Decision]:
    from stages.release.history.accepting import check_released
    from stages.release.history.promoting import promotion
    from stages.release.manifest import validator

    validator()  # its imports take long, and nobody should have to wait for them

    def decide(state: State, writing: Writing, key: Any) -> Decision:
        decision = promotion(
            state,
            options.version,
            options.channel,
            options.device,
            writing.next,
            share=options.share,
            arm=options.arm,
            new_channel=options.new_channel,
        )
        if decision.changes and options.share != 0:  # an arm can always be ended
            for device in decision.devices:
                notes = check_released(Releases(project), state.releases[options.version, device], writing.keys)
                decision = replace(decision, lines=(*decision.lines, *notes))
        return decision

    return decide


def rollback(options: argparse.Namespace, project: Project) -> Callable[..., Decision]:
    from stages.release.history.reverting import rollback as decision

    return lambda state, writing, key: decision(state, options.channel, options.device)


def retire(options: argparse.Namespace, project: Project) -> Callable[..., Decision]:
    from stages.release.history.reverting import retirement

    return lambda state, writing, key: retirement(state, options.version, options.device, options.force)


DECISIONS = {"create": create, "promote": promote, "rollback": rollback, "retire": retire}


def status(options: argparse.Namespace, project: Project, tracking: list[str]) -> int:
    from stages.release.history.standing import status_json, status_lines

    registry = load_config(project, tracking).tracking
    log, state = read(options, project)
    if options.sync:
        followed(project, registry, len(log.entries), force=True)
    progress = registry_json(project, registry, len(log.entries))
    if options.json:
        print(json.dumps({**status_json(state, log), "registry": progress}))
    else:
        print("\n".join([*status_lines(state, log), *registry_lines(progress, len(log.entries))]))
    return 0


def history(options: argparse.Namespace, project: Project) -> int:
    from stages.release.history.standing import history_lines

    log, state = read(options, project)
    if options.channel:
        channels_of(state, options.channel, ())
    devices = sorted({device for _, device in state.releases})
    for device in options.device:
        if device not in devices:
            raise ConfigError(f"nothing was released for '{device}'", hint=suggestion(device, devices, "devices"))
    entries = [entry for entry in log.entries if concerns(entry, options)]
    if options.json:
        print(
            json.dumps(
                {
                    "head": log.head or None,
                    "torn": log.torn,
                    "unchecked": list(log.unchecked),
                    "entries": list(map(entry_json, entries)),
                }
            )
        )
    else:
        print("\n".join([*history_lines(entries), f"head {log.head}" if log.head else "no release yet"]))
    return 0


def concerns(entry: Entry, options: argparse.Namespace) -> bool:
    """Say whether an entry is about the channel and one of the devices that were asked for."""
    channels = {entry.channel, *entry.set} if options.channel else {options.channel}
    devices = {*entry.devices, *(device for each in entry.set.values() for device in each)}
    return options.channel in channels and (not options.device or not devices.isdisjoint(options.device))


def read(options: argparse.Namespace, project: Project) -> tuple[Log, State]:
    """Read the history, check --expect, and say what nobody could check, and what a killed command has left."""
    from stages.release.history.standing import unchecked_words

    releases = Releases(project)
    log = History(releases.history).read(trusted_keys(options.key, releases))
    if options.expect:
        check_expected(log, options.expect, str(releases.history))
    if log.unchecked:
        note(f"{releases.history}: {unchecked_words(log)}")
    if log.torn:
        note(
            f"{releases.history}: the {log.torn} bytes at its end are the unfinished entry of a killed command; it was "
            "never recorded, and the next command drops it"
        )
    return log, state_of(log.entries)


def followed(project: Project, registry: TrackingConfig, sequence: int, force: bool = False) -> str:
    """Wait for MLflow's registry, if there is one, and a history; return why it is not up to date, or ""."""
    if registry.kind != "mlflow" or not sequence:
        return ""
    from stages.release.history.following import follow

    return follow(project, registry.uri, sequence, force)


def registry_json(project: Project, registry: TrackingConfig, sequence: int) -> dict[str, Any]:
    """Return how far MLflow's registry is, as far as it is known without asking it."""
    if registry.kind != "mlflow":
        return {"kind": registry.kind, "synced": None, "entry": None, "why": ""}
    from stages.release.history.following import progress_of

    known, path = progress_of(project), Releases(project).history
    whole = known.covers(registry.uri, sequence, path) or not sequence
    entry = known.sequence if known.covers(registry.uri, 0, path) else 0
    return {"kind": "mlflow", "synced": whole, "entry": entry, "why": known.failed}


def registry_lines(progress: dict[str, Any], sequence: int) -> Iterator[str]:
    if progress["kind"] != "mlflow":
        yield "MLflow     none (tracking=none)"
    elif progress["synced"]:
        yield "MLflow     agrees"
    else:
        why = f": {progress['why']}" if progress["why"] else ""
        yield f"MLflow     is at entry {progress['entry']} of {sequence}{why}; --sync brings it up"


def changed_json(decision: Decision, entry: Entry | None, registry: TrackingConfig, why: str) -> dict[str, Any]:
    return {
        "action": decision.action,
        "version": decision.version,
        "channel": decision.channel,
        "devices": list(decision.devices),
        "changed": decision.changes,
        "entry": {"sequence": entry.sequence, "digest": entry.digest} if entry else None,
        "said": list(decision.lines),
        "registry": {"kind": registry.kind, "synced": not why if registry.kind == "mlflow" else None, "why": why},
    }


def entry_json(entry: Entry) -> dict[str, Any]:
    return {**entry.to_json(), "digest": entry.digest}


def parse(action: str, arguments: list[str]) -> argparse.Namespace:
    parser = Parser(f"release {action}", f"{ACTIONS[action][0].upper()}{ACTIONS[action][1:]}.")
    ARGUMENTS[action](parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    if action not in ("status", "history"):
        parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key that signs the entry")
        parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the history")
        parser.add_argument("--who", default="", metavar="NAME", help="for the history; by default the key's file name")
        parser.epilog = "tracking=none, or another key of conf/tracking, may follow, as with 'tapeout build'"
    return parser.parse_args(arguments)


def create_arguments(parser: Parser) -> None:
    parser.add_argument("devices", metavar="DEVICE", nargs="*", help="by default all of the last build")
    parser.add_argument("--version", metavar="V", help="that the bundles must have: their package.version")
    parser.add_argument("--allow-dirty", action="store_true", help="release what no commit holds; the history says so")


def promote_arguments(parser: Parser) -> None:
    parser.add_argument("version", metavar="VERSION")
    parser.add_argument("--channel", required=True, metavar="C")
    device_argument(parser, "by default all that the version was released for")
    parser.add_argument(
        "--share", type=float, metavar="P", help="percent of installations, 0.01 to 100; 0 ends the arm"
    )
    parser.add_argument("--arm", metavar="NAME", help="whose share it is; by default challenger")
    parser.add_argument("--new-channel", action="store_true", help="the channel is new, and not a typing error")


def rollback_arguments(parser: Parser) -> None:
    parser.add_argument("--channel", required=True, metavar="C")
    device_argument(parser, "by default all of the channel")


def retire_arguments(parser: Parser) -> None:
    parser.add_argument("version", metavar="VERSION")
    device_argument(parser, "by default all that the version was released for")
    parser.add_argument("--force", action="store_true", help="also while it is served: the channels are rolled back")


def status_arguments(parser: Parser) -> None:
    reading_arguments(parser)
    parser.add_argument("--sync", action="store_true", help="compare all of MLflow's registry, and bring it up to date")


def history_arguments(parser: Parser) -> None:
    reading_arguments(parser)
    parser.add_argument("--channel", metavar="C", help="only its entries")
    device_argument(parser, "only its entries")


def reading_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--key", type=Path, action="append", default=[], metavar="PUB", help="that is trusted; else releases/keys/*.pub"
    )
    parser.add_argument("--expect", metavar="SEQUENCE:SHA256", help="refuse a history that does not hold this entry")


def device_argument(parser: Parser, default: str) -> None:
    parser.add_argument("--device", action="append", default=[], metavar="D", help=f"may be repeated; {default}")


ARGUMENTS: dict[str, Callable[[Parser], None]] = {
    "create": create_arguments,
    "promote": promote_arguments,
    "rollback": rollback_arguments,
    "retire": retire_arguments,
    "status": status_arguments,
    "history": history_arguments,
}


def waiting() -> None:
    note("another release command is writing; waiting for it")


def note(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
