"""`tapeout key`: keys that sign bundles, releases and update metadata."""

from __future__ import annotations

import getpass
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from pipelines.commands import anywhere
from pipelines.errors import ConfigError
from pipelines.files import write_whole
from pipelines.project import Project
from stages.release.commands.parser import Parser, action_of

ACTIONS = {
    "new": "make a pair of keys: FILE, which signs, and FILE.pub, which everybody may have",
    "show": "a public key's id and kind",
    "passphrase": "give a private key another passphrase",
}
NEW_PASSPHRASE = "TAPEOUT_NEW_PASSPHRASE"
SHORTEST = 8  # characters of a passphrase


@anywhere
def key(arguments: list[str], project: Project) -> int:
    """make a key that signs, show one, change its passphrase"""
    action, others = action_of("key", arguments, ACTIONS)
    return {"new": new, "show": show, "passphrase": passphrase}[action](others)


def new(arguments: list[str]) -> int:
    from stages.release.signing.keys import PASSPHRASE, check_new, new_key, public_path

    parser = Parser("key new", "Makes a pair of keys. The private one is encrypted, and only you may read it.")
    parser.add_argument("file", metavar="FILE", type=Path, help="of the private key; FILE.pub is the public one")
    parser.add_argument("--type", default="p256", metavar="TYPE", help="p256 (the default) or ed25519")
    parser.add_argument(
        "--no-passphrase", action="store_true", help="leave it in clear: for a key that other means protect"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    check_new(options.file, options.type)
    secret = None if options.no_passphrase else chosen_passphrase(options.file, PASSPHRASE)
    made = new_key(options.file, options.type, secret).public
    if options.json:
        print(
            json.dumps(
                {
                    "keyid": made.keyid,
                    "type": made.kind,
                    "private": str(options.file),
                    "public": str(public_path(options.file)),
                }
            )
        )
    else:
        print(f"{options.file}      signs; keep it to yourself, and a copy of it where no machine reaches")
        print(f"{public_path(options.file)}  verifies; put it into releases/keys to trust it")
        print(f"key id {made.keyid}")
    return 0


def chosen_passphrase(path: Path, variable: str) -> str:
    """Return a new passphrase: that in an environment variable, or as typed twice. Raises ConfigError."""
    given = os.environ.get(variable)
    if given is None:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"{path}: a passphrase is needed, and nobody is here to type one",
                hint=f"set ${variable}, or --no-passphrase for a key that other means protect",
            )
        given = getpass.getpass(f"new passphrase of {path}: ")
        if getpass.getpass("once more: ") != given:
            raise ConfigError("the two passphrases differ")
    if len(given) < SHORTEST:
        raise ConfigError(f"a passphrase of {len(given)} characters; at least {SHORTEST} are needed")
    return given


def show(arguments: list[str]) -> int:
    from stages.release.signing.keys import KINDS, load_public_key

    parser = Parser("key show", "Says what a public key is.")
    parser.add_argument("file", metavar="FILE.pub", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    found = load_public_key(options.file)
    told: dict[str, Any] = {"name": found.name, "keyid": found.keyid, "type": found.kind}
    print(json.dumps(told) if options.json else f"{found.name}\nkey id {found.keyid}\ntype   {KINDS[found.kind]}")
    return 0


def passphrase(arguments: list[str]) -> int:
    from stages.release.signing.keys import load_signing_key, private_pem

    parser = Parser("key passphrase", "Encrypts a private key anew.")
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("--no-passphrase", action="store_true", help="leave it in clear")
    options = parser.parse_args(arguments)
    loaded = load_signing_key(options.file)
    secret = None if options.no_passphrase else chosen_passphrase(options.file, NEW_PASSPHRASE)
    pem = private_pem(loaded, secret)

    def fill(file: IO[bytes]) -> None:
        os.fchmod(file.fileno(), 0o600)  # before there is anything to read
        file.write(pem)

    write_whole(options.file, fill, mode=0o600)
    print(f"{options.file}: {'left in clear' if secret is None else 'encrypted anew'}")
    return 0
