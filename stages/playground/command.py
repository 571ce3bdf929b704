"""`tapeout playground`: a page on which bundles for the web are asked about images, in the browser alone."""

from __future__ import annotations

import argparse
import signal
import tempfile
import threading
import webbrowser
from pathlib import Path

from pipelines.commands import anywhere
from pipelines.errors import ConfigError
from pipelines.files import storing
from pipelines.project import Project
from stages.release.commands.parser import Parser

DEFAULT = "web-wasm"


@anywhere
def playground(arguments: list[str], project: Project) -> int:
    """a page that asks each BUNDLE for the web about images, side by side: served here, or written to --out"""
    options = parse(arguments)
    from stages.playground.bundles import shown_bundles
    from stages.playground.questions import select
    from stages.playground.sdk import built_sdk
    from stages.playground.site import check_replaceable, replacing, write_site

    folders = options.bundles or [project.artifacts / DEFAULT]
    if options.out is not None:
        check_replaceable(options.out, folders)
    bundles = shown_bundles(folders)
    selection = select(project, options.questions)
    sdk = built_sdk()
    if options.out is not None:
        with replacing(options.out, folders) as new:
            write_site(new, sdk, bundles, selection)
        print("\n".join(written(options.out)), flush=True)
        return 0 if options.no_serve else serve(options.out, options)
    with storing(tempfile.gettempdir()):
        folder = tempfile.TemporaryDirectory(prefix="tapeout-playground-", ignore_cleanup_errors=True)
    with folder as name:
        with storing(name):
            write_site(Path(name), sdk, bundles, selection)
        return serve(Path(name), options)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("playground", "Asks bundles for the web about images, on a page in the browser.")
    parser.add_argument(
        "bundles", metavar="BUNDLE", nargs="*", type=Path, help=f"its folder; by default artifacts/{DEFAULT}"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the page there, for any web server, and keep it")
    parser.add_argument("--questions", type=Path, metavar="DIR", help="your own images with questions.jsonl")
    parser.add_argument("--port", type=int, metavar="N", help="of the address; 0: any that is free")
    parser.add_argument("--no-serve", action="store_true", help="with --out: only write it")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    options: argparse.Namespace = parser.parse_args(arguments)
    if options.no_serve and options.out is None:
        raise ConfigError(
            "tapeout playground: --no-serve without --out would leave nothing", hint="--out DIR --no-serve"
        )
    if options.no_serve and (options.open or options.port is not None):
        raise ConfigError("tapeout playground: --port and --open are for what is served", hint="leave out --no-serve")
    if options.port is not None and not 0 <= options.port <= 65535:
        raise ConfigError(f"tapeout playground: --port {options.port}: a port is 0 to 65535")
    return options


def written(out: Path) -> list[str]:
    """What is said of a folder that was written."""
    from stages.playground.site import HEADERS

    return [
        f"wrote {out}: a static site for any web server, over https or on localhost",
        "  with these headers the page may use threads; without them it works on one:",
        *(f"    {name}: {value}" for name, value in HEADERS.items()),
    ]


def serve(folder: Path, options: argparse.Namespace) -> int:
    """Serve a site until Ctrl-C, which is how it ends well."""
    from stages.playground.server import serving

    with serving(folder, options.port) as server:
        print(f"{server.url} is the playground, on this machine alone; Ctrl-C ends it", flush=True)
        if options.open:
            webbrowser.open(server.url)
        try:
            threading.Event().wait()
        except KeyboardInterrupt as stopped:
            if stopped.args not in ((), (signal.SIGINT,)):
                raise
            print("", flush=True)
    return 0
