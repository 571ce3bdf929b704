"""`tapeout pack`: bundles as archives, for whoever signs, attests or ships them by other means."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipelines.commands import anywhere
from pipelines.errors import ConfigError
from pipelines.project import Project
from stages.release.commands.parser import Parser


@anywhere
def pack(arguments: list[str], project: Project) -> int:
    """write BUNDLES as archives, the same bytes anywhere; 'tapeout release create' does this, and signs and records"""
    options = parse(arguments)
    from stages.release.bundles.archive import pack as write
    from stages.release.layout import ARCHIVE
    from stages.release.manifest import read

    titles = {folder: read(folder).device for folder in options.bundles}  # all are looked at before any is written
    if len(set(titles.values())) < len(titles):
        raise ConfigError("tapeout pack: two bundles for one device", hint="pack them into folders of their own")
    options.to.mkdir(parents=True, exist_ok=True)
    found = []
    for folder, device in titles.items():
        path = options.to / f"{device}{ARCHIVE}"
        found.append({"archive": str(path), "sha256": write(folder, path), "size": path.stat().st_size})
    if options.json:
        print(json.dumps({"archives": found}))
    else:
        print("\n".join(f"{each['sha256']}  {each['archive']}" for each in found))
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("pack", "Writes bundles as archives: DEVICE.tar. Prints what sha256sum would.")
    parser.add_argument("bundles", metavar="BUNDLE", nargs="+", type=Path, help="its folder: artifacts/DEVICE")
    parser.add_argument("--to", type=Path, default=Path("."), metavar="DIR", help="where they go; by default here")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args(arguments)
