"""`tapeout fetch`: what a channel of an update repository has for a device, verified, in a folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.commands import anywhere
from pipelines.errors import ConfigError
from pipelines.project import Project
from stages.release.commands.parser import Parser

if TYPE_CHECKING:
    from stages.release.client.client import Client, Updated

STATUS = {
    "new": "is in place now",
    "unchanged": "is in place already",
    "repaired": "is in place; files of it were damaged, and came again",
    "back": "is in place again: what was there must not be used",
    "held": "stays in place: what the channel has is known not to work here",
}
MIB = 1 << 20
OWN = (
    "lock",
    "state.json",
    "trust.json",
    "versions",
    "metadata",
    "partial",
    "current",
)  # one of them, and it is a client's


@anywhere
def fetch(arguments: list[str], project: Project) -> int:
    """get what a channel of an update repository has for a device, verified, into a folder"""
    options = parse(arguments)
    check_folder(Path(options.to), options)
    from stages.release.client.client import Client
    from stages.release.client.self_test import self_test

    client = Client(
        Path(options.to),
        options.url or "",
        options.device or "",
        options.channel or "",
        root_of(options.root),
        options.id,
        None if options.self_test == "off" else self_test,
        progress=None if options.json or not sys.stderr.isatty() else shown,
    )
    if options.status:
        return tell(client.status(), status_lines(client), options.json)
    if options.confirm:
        digest = client.confirm()
        return tell({"confirmed": digest}, [f"confirmed: {digest}"], options.json)
    if options.go_back:
        path = client.go_back()
        words = f"{client.place.read(path.name).version}, the last good version, is in place: {path}"
        left = "  the one that it went back from is not taken again until the channel has named another"
        return tell({"path": str(path)}, [words, left], options.json)
    try:
        updated = client.update()
    finally:
        if client.progress is not None:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return tell(updated.as_json(), lines(updated, options.device), options.json)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("fetch", "Gets what a channel of an update repository has for a device, verified, into a folder.")
    parser.add_argument("url", metavar="URL", nargs="?", help="of the repository: http(s)://..., or a folder")
    parser.add_argument("--to", metavar="DIR", required=True, help="the folder; all in it belongs to the client")
    parser.add_argument("--device", metavar="NAME", help="such as pixel-8")
    parser.add_argument("--channel", metavar="NAME", help="such as stable")
    parser.add_argument("--root", metavar="FILE", help="trusted root metadata (root.json), needed the first time")
    parser.add_argument(
        "--id", metavar="ID", help="of this installation, for experiments; by default random, made once"
    )
    parser.add_argument(
        "--self-test", choices=("on", "off"), default="on", help="run a new bundle before it is used; by default on"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document; sizes in bytes")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--status", action="store_true", help="say what is in place; asks no network")
    others.add_argument("--go-back", action="store_true", help="put the last good version in place again")
    others.add_argument("--confirm", action="store_true", help="say that the version in place works")
    options = parser.parse_args(arguments)
    if not (options.status or options.go_back or options.confirm):
        missing = [name for name in ("url", "device", "channel") if not getattr(options, name)]
        if missing:
            words = ", ".join("URL" if name == "url" else f"--{name}" for name in missing)
            raise ConfigError(
                f"tapeout fetch: {words} is missing",
                hint="tapeout fetch URL --to DIR --device NAME --channel NAME --root FILE",
            )
    return options


def check_folder(folder: Path, options: argparse.Namespace) -> None:
    """Raise ConfigError for a folder that holds something else: all in it will belong to the client."""
    known = folder.is_dir() and any((folder / name).exists() for name in OWN)
    if known or not folder.exists():
        if not known and (options.status or options.go_back or options.confirm):
            raise ConfigError(f"--to {folder}: nothing was fetched there", hint="'tapeout fetch URL --to DIR' does")
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise ConfigError(f"--to {folder}: holds something else", hint="name a folder that is new or empty")


def root_of(path: str | None) -> bytes | None:
    """Return trusted root metadata. Raises ConfigError."""
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError as cause:
        raise ConfigError(
            f"--root {path} cannot be read: {cause.strerror or cause}",
            hint="it is metadata/1.root.json of the repository, from whoever publishes: not from the server",
        ) from cause


def shown(path: str, came: int, size: int) -> None:
    share = min(1.0, came / size) if size else 1.0
    text = f"{came / MIB:.1f} of at most {size / MIB:.1f} MiB ({100 * share:.0f} %)  {path}"
    print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)


def tell(document: dict[str, Any], text: Iterator[str] | list[str], as_json: bool) -> int:
    print(json.dumps(document) if as_json else "\n".join(text))
    return 0


def lines(updated: Updated, device: str) -> Iterator[str]:
    arm = f" ({updated.arm})" if updated.arm else ""
    yield f"{device}: {updated.version}{arm} {STATUS[updated.status]}"
    yield f"  {updated.path}"
    if updated.status in ("new", "repaired"):
        share = 100 * updated.saved / updated.size
        yield (
            f"  downloaded {updated.downloaded / MIB:.2f} MiB for a bundle of {updated.size / MIB:.2f} MiB "
            f"(deltas {updated.deltas / MIB:.2f} MiB); {updated.saved / MIB:.2f} MiB saved ({share:.0f} %)"
        )
    for note in updated.notes:
        yield f"  note: {note}"


def status_lines(client: Client) -> Iterator[str]:
    found = client.status()
    current, left = found["current"], found["fallback"]
    if current is None:
        yield "nothing is in place"
    else:
        yield f"{current['version']} is in place{', confirmed' if found['confirmed'] else ''}: {current['path']}"
    for path in found["damaged"]:
        yield f"  damaged: {path}; the next update repairs it"
    if left is not None:
        yield f"  {left['version']} is kept to go back to"
    for digest, why in found["bad"].items():
        yield f"  {digest[:12]} is not taken again: {why}"
    yield f"  installation {found['installation']}"
