"""`tapeout publish`: an update repository becomes what the signed history of releases says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.project import Project
from stages.release.commands.parser import Parser

if TYPE_CHECKING:
    from stages.release.updates.publishing import Published


def publish(arguments: list[str], project: Project) -> int:
    """make an update repository what the signed history of releases says"""
    options = parser().parse_args(arguments)
    from stages.release.history.history import History
    from stages.release.history.state import state_of
    from stages.release.layout import Releases
    from stages.release.signing.keys import load_public_key, load_signing_key, trusted_keys
    from stages.release.updates import publishing

    releases = Releases(project)
    accepted = [load_public_key(path) for path in options.trusted]
    trusted = [*accepted, *trusted_keys((), releases)]
    trusted = list({key.keyid: key for key in trusted}.values())
    entries = History(releases.history).entries(trusted)
    keys = [load_signing_key(path) for path in options.keys]
    done = publishing.publish(
        options.directory,
        releases,
        state_of(entries),
        keys,
        trusted=trusted,
        accepted=accepted,
        heads={entry.sequence: entry.digest for entry in entries},
        check=options.check,
        prune=options.prune,
        another_history=options.another_history,
    )
    if options.json:
        print(json.dumps(document(done, options.directory)))
    else:
        print("\n".join(lines(done, options.directory)))
    return 0


def parser() -> Parser:
    made = Parser("publish", "Makes an update repository what the signed history of releases says.")
    made.add_argument("directory", metavar="DIR", type=Path, help="the update repository: static files")
    made.add_argument(
        "--key",
        dest="keys",
        metavar="FILE",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        help="private keys: the online key, those of the channels that change, the release key for new releases",
    )
    made.add_argument(
        "--trusted",
        metavar="FILE.pub",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        help="a key that DIR does not know yet, and whose entries of the history are to be published all the same",
    )
    made.add_argument("--check", action="store_true", help="hash all blobs of served releases, and mend damaged ones")
    made.add_argument("--prune", action="store_true", help="then remove files that nothing leads to any more")
    made.add_argument(
        "--another-history",
        action="store_true",
        help="the history that it was published from was given up for this one",
    )
    made.add_argument("--json", action="store_true", help="print one JSON document")
    return made


def document(done: Published, directory: Path) -> dict[str, object]:
    """Return what was done, for machines. Sizes are in bytes."""
    return {
        "repository": str(directory),
        "changed": bool(done.signed or done.mended),
        "signed": list(done.signed),
        "added": list(done.added),
        "mended": list(done.mended),
        "removed": list(done.removed),
        "documents": list(done.documents),
        "blobs": {"files": done.files, "bytes": done.size},
        "deltas": {"pairs": done.deltas, "bytes": done.delta_size},
        "pruned": {"files": done.pruned[0], "bytes": done.pruned[1]},
        "notes": list(done.notes),
    }


def lines(done: Published, directory: Path) -> Iterator[str]:
    """Yield what was done, for the terminal."""
    from stages.release.updates.overview import size
    from stages.release.updates.roles import counted

    if not (done.signed or done.mended):
        yield f"{directory}: nothing changed, nothing written"
    else:
        yield f"{directory}: signed {', '.join(done.signed) or 'nothing'}"
        yield from (f"  added    {each}" for each in done.added)
        yield from (f"  mended   {each}" for each in done.mended)
        yield from (f"  channel  {each}" for each in done.documents)
        yield from (f"  removed  {each}" for each in done.removed)
        yield f"  blobs    {counted(done.files, 'file')}, {size(done.size)}"
        if done.deltas:
            yield f"  deltas   from {counted(done.deltas, 'release')}, {size(done.delta_size)}"
    if done.pruned[0]:
        yield f"  pruned   {counted(done.pruned[0], 'file')}, {size(done.pruned[1])}"
    yield from (f"  note: {each}" for each in done.notes)
