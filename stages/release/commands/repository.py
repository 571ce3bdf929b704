"""`tapeout repository`: the roles and keys of an update repository, and how long their signatures last."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.commands import anywhere
from pipelines.errors import ConfigError
from pipelines.files import storing
from pipelines.project import Project
from stages.release.commands.parser import Parser, action_of

if TYPE_CHECKING:
    from stages.release.signing.keys import PublicKey, SigningKey
    from stages.release.updates.rotation import Rotated

SKIP = 10_000
ACTIONS = {
    "init": "make a repository in DIR: root signed by the root keys, all roles, no release yet",
    "refresh": "sign snapshot and timestamp anew, with the online key: what a job does several times a day",
    "rotate": "replace, add or remove a role's key, or set its threshold, by a new root",
    "sign": "add a signature to the root that waits for some in DIR/staging",
    "channel": "add a channel, with a key of its own",
    "status": "roles, keys, versions, expiry, channels, sizes; exit status 1 when clients refuse something",
}


@anywhere
def repository(arguments: list[str], project: Project) -> int:
    """the update repository's roles: init, refresh, rotate, sign, channel, status"""
    action, rest = action_of("repository", arguments, ACTIONS)
    options = parse(action, rest)
    done: int = {
        "init": init,
        "refresh": refresh,
        "rotate": rotate,
        "sign": sign,
        "channel": channel,
        "status": status,
    }[action](options)
    return done


def parse(action: str, arguments: list[str]) -> argparse.Namespace:
    parser = parser_of(action)
    return parser.parse_args(arguments)


def parser_of(action: str) -> Parser:
    """Return what takes an action's arguments."""
    parser = Parser(f"repository {action}", f"{ACTIONS[action][0].upper()}{ACTIONS[action][1:]}.")
    parser.add_argument("directory", metavar="DIR", type=Path, help="the update repository: static files")
    key: dict[str, Any] = {"metavar": "FILE", "type": Path, "nargs": "+", "action": "extend", "default": []}
    if action == "init":
        parser.add_argument("--root-key", "--key", dest="root", required=True, help=ROOT_HELP, **key)
        parser.add_argument("--threshold", type=int, default=1, metavar="N", help="root keys that must sign each root")
        parser.add_argument(
            "--targets-key", type=Path, metavar="FILE", help="release key; by default the first root key"
        )
        parser.add_argument("--online-key", type=Path, metavar="FILE", help="by default the release key")
        parser.add_argument(
            "--channel",
            metavar="NAME[=FILE]",
            nargs="+",
            action="extend",
            default=[],
            help="and its key; by default the release key",
        )
    elif action == "rotate":
        parser.add_argument("role", metavar="ROLE", help="root, targets, snapshot, timestamp, online, channel-NAME")
        parser.add_argument("--new", help="key to add: FILE.pub, or FILE, which then signs, too", **key)
        parser.add_argument(
            "--old", metavar="KEY", nargs="+", action="extend", default=[], help="key to remove: its id, or FILE.pub"
        )
        parser.add_argument("--keep", action="store_true", help="remove none: --new stands beside the others")
        parser.add_argument("--threshold", type=int, metavar="N", help="keys of the role that must sign from now on")
    elif action == "channel":
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("--channel-key", type=Path, metavar="FILE", help="by default the release key")
    elif action == "refresh":
        parser.add_argument("--all", action="store_true", help="sign every role anew that --key can sign")
        parser.add_argument(
            "--skip",
            type=int,
            default=0,
            metavar="N",
            help="after a restore: all roles, N versions further; N up to 10000",
        )
    if action in ("init", "rotate"):
        parser.add_argument(
            "--expires",
            metavar="ROLE=DAYS",
            nargs="+",
            action="extend",
            default=[],
            help="life of its metadata, in days",
        )
    if action in ("refresh", "rotate", "sign", "channel"):
        parser.add_argument("--key", required=True, dest="keys", help="private keys that sign", **key)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


ROOT_HELP = "root keys: FILE signs, FILE.pub of a holder who is not here may sign the next root"


def init(options: argparse.Namespace) -> int:
    from stages.release.updates.creation import Founding, create
    from stages.release.updates.expiry import parse_days, seconds
    from stages.release.updates.repository import alone

    loaded = [load(path) for path in options.root]
    signers = [signing for _, signing in loaded if signing]
    release = one(options.targets_key) or (signers[0] if signers else None)
    if release is None:
        raise ConfigError("none of the root keys is private, and somebody must sign", hint="name FILE, not FILE.pub")
    online = one(options.online_key) or release
    channels = {}
    for word in options.channel:
        name, _, path = word.partition("=")
        channels[name] = one(Path(path)) if path else release
    founding = Founding(
        [public for public, _ in loaded],
        options.threshold,
        release,
        online,
        {name: key for name, key in channels.items() if key},
        signers,
        parse_days(options.expires),
    )
    with storing(options.directory):
        options.directory.mkdir(parents=True, exist_ok=True)
    with alone(options.directory):
        made = create(options.directory, founding, seconds())
    root = made.layout.versioned("root", 1)
    ids = {key.public.keyid for key in founding.keys}
    notes = [f"give {root} to every client: it is what they trust first"]
    if len(ids) == 1:
        notes.append(
            "one key does everything: whoever steals it can ship anything to every client, and no key is left that "
            "could say so. For more than a trial use an offline root key, and others for releases and for the online "
            "job: --targets-key, --online-key"
        )
    elif root_is_used(founding.root, founding.keys, signers):
        notes.append("a root key does the work of another role, too: keep it offline, and give that role its own key")
    if not channels:
        notes.append(f"there is no channel yet: 'tapeout repository channel {options.directory} stable --key ...'")
    said(options, {"repository": str(options.directory), "root": str(root), "roles": made.roles, "notes": notes})
    if not options.json:
        print(f"{options.directory}: a repository with the roles {', '.join(made.roles)}")
        print("\n".join(f"  {each}" for each in notes))
    return 0


def root_is_used(root: Iterable[PublicKey], keys: Sequence[SigningKey], signers: Sequence[SigningKey]) -> bool:
    """Say whether a root key signs for another role, too."""
    others = {key.public.keyid for key in keys[len(signers) :]}
    return bool(others & {key.keyid for key in root})


def refresh(options: argparse.Namespace) -> int:
    from stages.release.updates import repository as live
    from stages.release.updates.expiry import seconds, text

    if not 0 <= options.skip <= SKIP:
        raise ConfigError(
            f"--skip {options.skip}: expected 0 to {SKIP}", hint="clients never take lower versions again"
        )
    keys = signing_keys(options.keys)
    with live.alone(options.directory):
        before = live.open_repository(options.directory)
        done, roles = live.refresh(before, keys, seconds(), options.all, options.skip)
    until = text(done.timestamp.signed.expires)
    said(options, {"repository": str(options.directory), "signed": roles, "until": until})
    if not options.json:
        print(f"{options.directory}: signed {', '.join(roles)}; the timestamp is good until {until}")
    return 0


def rotate(options: argparse.Namespace) -> int:
    from stages.release.updates import rotation
    from stages.release.updates.expiry import parse_days, seconds
    from stages.release.updates.repository import alone, open_repository
    from stages.release.updates.roles import roles_of

    keys = signing_keys(options.keys)
    loaded = [load(path) for path in options.new]
    keys += [signing for _, signing in loaded if signing]
    old = [load(Path(word))[0].keyid if word.endswith(".pub") else word for word in options.old]
    change = rotation.Change(
        [public for public, _ in loaded], old, options.keep, options.threshold, parse_days(options.expires)
    )
    with alone(options.directory):
        before = open_repository(options.directory)
        roles = roles_of(options.role, before.channels)
        done = rotation.rotate(before, roles, change, keys, seconds())
    return report(options, done)


def sign(options: argparse.Namespace) -> int:
    from stages.release.updates import rotation
    from stages.release.updates.expiry import seconds
    from stages.release.updates.repository import alone, open_repository

    keys = signing_keys(options.keys)
    with alone(options.directory):
        before = open_repository(options.directory)
        if before.next and not options.json:
            print(f"root {before.next.signed.version} changes:")
            print("\n".join(f"  {line}" for line in rotation.differences(before.root, before.next.signed)), flush=True)
        done = rotation.sign_staged(before, keys, seconds())
    return report(options, done)


def report(options: argparse.Namespace, done: Rotated) -> int:
    """Say what became of a new root."""
    live = done.repository
    said(
        options,
        {
            "repository": str(options.directory),
            "root": live.root.version,
            "live": not done.waiting,
            "waiting": list(done.waiting),
            "refused": list(live.refused),
        },
    )
    if options.json:
        return 0
    if done.waiting:
        print(f"{live.layout.staged(live.root.version + 1)}: nothing is live yet; signatures are missing:")
        print("\n".join(f"  {each}" for each in done.waiting))
        print(f"  each holder: tapeout repository sign {options.directory} --key FILE")
    else:
        print(f"{options.directory}: live, with root {live.root.version}")
    if live.refused:
        print(
            f"  clients refuse updates until the new keys have signed {', '.join(live.refused)}: "
            f"tapeout repository refresh {options.directory} --key ..."
        )
    return 0


def channel(options: argparse.Namespace) -> int:
    from stages.release.updates import rotation
    from stages.release.updates.expiry import seconds
    from stages.release.updates.repository import alone, open_repository

    keys = signing_keys(options.keys)
    own = one(options.channel_key)
    with alone(options.directory):
        before = open_repository(options.directory)
        done = rotation.add_channel(
            before, options.name, own.public if own else None, [*keys, *([own] if own else [])], seconds()
        )
    said(options, {"repository": str(options.directory), "channels": list(done.channels)})
    if not options.json:
        print(f"{options.directory}: channels {', '.join(done.channels)}")
    return 0


def status(options: argparse.Namespace) -> int:
    from stages.release.updates.expiry import seconds
    from stages.release.updates.overview import lines, overview
    from stages.release.updates.repository import open_repository

    found = overview(open_repository(options.directory), seconds())
    said(options, found)
    if not options.json:
        print("\n".join(lines(found, str(options.directory))))
    return 0 if found["usable"] else 1


def said(options: argparse.Namespace, value: object) -> None:
    if options.json:
        print(json.dumps(value))


def signing_keys(paths: Sequence[Path]) -> list[SigningKey]:
    from stages.release.signing.keys import load_signing_key

    return [load_signing_key(path) for path in paths]


def one(path: Path | None) -> SigningKey | None:
    return signing_keys([path])[0] if path else None


def load(path: Path) -> tuple[PublicKey, SigningKey | None]:
    """Return the key in a file, and what signs with it where the file is the private one. Raises ConfigError."""
    from stages.release.signing.keys import load_public_key, load_signing_key

    if path.suffix == ".pub":
        return load_public_key(path), None
    key = load_signing_key(path)
    return key.public, key
