"""`tapeout gc`: removes what no named build, none of the last builds, and neither workspace nor dvc.lock needs.

DVC's cache is shared with the user's own data, so only objects go that a dropped record names, and that no kept record,
no dvc.lock and no .dvc file does, those of `dvc exp run` among them. While one runs in a copy, nothing is removed.
Before anything is, the names of those objects are written down; then go the records, then the objects. A kill on the
way leaves every record whole, and the next gc goes on with the list.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.checkout import Checkout
from pipelines.digests import hash_bytes
from pipelines.errors import ConfigError, StoreError
from pipelines.files import storing
from pipelines.history import Build, history_of
from pipelines.ledger import Record, read_record
from pipelines.sealed import read_sealed, write_sealed

ELSEWHERE = (".git", ".dvc", ".tapeout", "node_modules")  # folders that hold no dvc.lock and no .dvc file

RUNNING = (1, 2)  # DVC's TaskStatus: an experiment is prepared, or runs


@dataclass
class Garbage:
    """What is to go. builds: entries; those in `trimmed` stay, since they made what is kept. objects: by their names in
    DVC's cache, an md5 or an md5 with .dir. workspace: records under artifacts/ and, before each, its folder, unless
    that is now another node's."""

    builds: list[Build] = field(default_factory=list)
    trimmed: list[Build] = field(default_factory=list)
    unnamed: list[Build] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)
    objects: set[str] = field(default_factory=set)
    workspace: list[Path] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    def to_json(self, checkout: Checkout) -> dict[str, Any]:
        relative = checkout.project.relative
        return {
            "builds": [build.number for build in self.dropped],
            "records": [path.stem for path in self.records],
            "objects": sorted(self.objects),
            "workspace": [relative(path) for path in self.workspace],
            "logs": [relative(path) for path in self.logs],
            "bytes": self.bytes,
            "sizes": self.sizes,
        }

    @property
    def dropped(self) -> list[Build]:
        """The builds that are let go, the newest first."""
        return sorted([*self.builds, *self.trimmed], key=lambda build: -build.number)

    def lines(self, checkout: Checkout, dry: bool) -> Iterator[str]:
        """Yield what goes, in words."""
        relative = checkout.project.relative
        for build in self.unnamed:
            yield f"no longer called {build.name}: {replace(build, name=None).title}"
        for build in self.dropped:
            yield f"build    {build.title.removeprefix('build ')}"
        yield from (f"folder   {relative(path)}" for path in self.workspace if path.suffix != ".json")
        yield from (f"log      {relative(path)}" for path in self.logs)
        parts = [f"{len(self.dropped)} builds", f"{len(self.records)} results"]
        folders = sum(path.suffix != ".json" for path in self.workspace)
        parts += [f"{len(self.objects)} objects", f"{folders} folders", f"{len(self.logs)} logs"]
        if not (self.dropped or self.records or self.objects or self.workspace or self.logs):
            yield "nothing to remove: all is needed"
        else:
            yield f"{'would remove' if dry else 'removed'} {', '.join(parts)}: {amount(self.bytes)}"


def collect(checkout: Checkout, keep: int, unname: str | None, shared: bool, dry: bool) -> Garbage:
    """Remove what is not needed, unless `dry`; return what that is. Takes an opened checkout.

    keep: how many of the last builds are kept besides those with a name. unname: a name to take away first. shared:
    also remove from a cache outside the project. Raises ConfigError (nothing was removed) and StoreError.
    """
    project = checkout.project
    if not shared and not project.cache.is_relative_to(project.root):
        raise ConfigError(
            f"the cache {project.cache} lies outside this project, and other projects may use it",
            hint="if none does, say so with --shared-cache; what their .dvc files name is not seen from here",
        )
    for copy in running(project.root):
        raise ConfigError(
            f"'dvc exp run' has an experiment in {project.relative(copy)}, which may need any result",
            hint="wait for it; if it was killed, remove that folder. Nothing was removed",
        )
    garbage = find_garbage(checkout, keep, unname)
    if not dry:
        remove(checkout, garbage)
    return garbage


def find_garbage(checkout: Checkout, keep: int, unname: str | None) -> Garbage:
    """Return what neither the kept builds nor the workspace nor DVC's files need."""
    history, store, garbage = history_of(checkout.project), checkout.store, Garbage()
    for number in history.damaged():
        raise StoreError(
            f"{checkout.project.relative(history.path(number))} is damaged: what build {number} needs is not known",
            hint="delete it to let go of that build; nothing was removed",
        )
    garbage.unnamed = history.named(unname) if unname else []
    builds = [replace(build, name=None) if build.name == unname else build for build in history.builds]
    kept, named = kept_builds(builds, keep), names_in_dvc(checkout)
    current = set(builds[0].nodes) if builds else None
    results = {result for build in kept for result in build.nodes.items()}
    needed: list[Record] = []
    gone: list[Record] = []

    nodes = {node for node, _ in results}
    shown: set[Path] = set()
    stale: list[tuple[Path, Path]] = []
    for path in sorted((checkout.project.artifacts / "build").glob("*.json")):
        record = read_record(path)
        if record is None:  # `verify` names it, and a build puts it right
            shown |= {path.with_suffix(""), checkout.project.artifacts / path.stem.partition("-")[2]}
            continue
        if current is None or path.stem in current or (path.stem, record.key) in results or name_of(record) in named:
            needed.append(record)
            nodes.add(path.stem)
            shown.add(folder_of(checkout, path, record))
        else:
            gone.append(record)
            stale.append((folder_of(checkout, path, record), path))
    for folder, path in stale:  # a bundle's folder is its device's, whichever stage makes it
        garbage.workspace += [path] if folder in shown else [folder, path]
        shown.add(folder)
    garbage.logs = sorted(
        path for path in (checkout.project.state / "logs").glob("*.log") if builds and path.stem not in nodes
    )

    keys = {record.key for record in needed} | {key for _, key in results if key}
    for path in checkout.ledger.records():
        record = read_record(path)
        if path.stem in keys or (record is not None and name_of(record) in named):
            needed += [record] if record is not None else []
        else:
            gone += [record] if record is not None else []
            garbage.records.append(path)

    candidates = {name for record in gone for name in names_of(record)} | left_over(checkout)
    if store.objects.is_relative_to(checkout.project.state):  # not DVC's cache: all in it is Tapeout's
        candidates |= {path.parent.name + path.name for path in store.objects.glob("??/*")}
    candidates -= named.union(*map(names_of, needed))
    garbage.objects = {name for name in candidates if store.object_path(name).is_file()}

    keys |= {record.key for record in needed}
    for build in builds:
        if build not in kept and not (build.dropped and build.made & keys):
            (garbage.trimmed if build.made & keys else garbage.builds).append(build)
    objects = [store.object_path(name) for name in garbage.objects]
    places = {"records": garbage.records, "objects": objects, "workspace": garbage.workspace, "logs": garbage.logs}
    garbage.sizes = {name: sum(map(size_of, paths)) for name, paths in places.items()}
    return garbage


def kept_builds(builds: list[Build], keep: int) -> list[Build]:
    """Return the builds with a name and the last `keep` that ended, with those between them that did not."""
    ended = [build for build in builds if build.passed is not None]
    oldest = ended[min(keep, len(ended)) - 1].number if ended and keep else float("inf")
    newest = ended[0].number if ended else 0
    return [
        build
        for build in builds
        if build.name or (not build.dropped and (build.number >= oldest or build.number > newest))
    ]


def names_in_dvc(checkout: Checkout) -> set[str]:
    """Return the objects that DVC's files name, in the project and in its experiments, those in folders among them.

    Raises ConfigError.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: set[str] = set()
    root = checkout.project.root
    places = (root, *copies(root))
    files = ((checkout.project.relative(path), path.read_bytes) for place in places for path in dvc_files(place))
    for name, read in (*files, *experiments(root)):
        try:
            found |= set(md5s_in(yaml.load(read(), Loader=loader)))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{name} cannot be read: {' '.join(str(error).split())}",
                hint="mend it first: what it needs must stay; nothing was removed",
            ) from error
    for name in [name for name in found if name.endswith(".dir")]:
        try:
            found |= {str(each["md5"]) for each in json.loads(checkout.store.object_path(name).read_bytes())}
        except (OSError, ValueError, TypeError, KeyError):  # not here, and so are its files
            continue
    return found


def dvc_files(root: Path) -> Iterator[Path]:
    """Yield each dvc.lock and .dvc file of the project."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in ELSEWHERE]
        if "pyvenv.cfg" in files:
            folders.clear()
            continue
        yield from (Path(folder, name) for name in files if name == "dvc.lock" or name.endswith(".dvc"))


def copies(root: Path) -> list[Path]:
    """Return the copies of the project in which DVC runs experiments, or has left one that failed or was killed."""
    tried = root / ".dvc" / "tmp" / "exps"  # EXEC_TMP_DIR of DVC: a queue's are in it, those of --temp in standalone/
    return sorted(path for pattern in ("tmp*", "standalone/tmp*") for path in tried.glob(pattern) if path.is_dir())


def running(root: Path) -> Iterator[Path]:
    """Yield each copy in which DVC says that an experiment runs: it says so too of one that was killed."""
    tried, found = root / ".dvc" / "tmp" / "exps", copies(root)
    for pattern in ("run/*/*.run", "standalone/run/*/*.run"):
        for path in sorted(tried.glob(pattern)):
            try:
                said = json.loads(path.read_bytes())
                copy, status = Path(said["root_dir"]), int(said["status"])
            except (OSError, ValueError, TypeError, KeyError):  # not one of DVC's, or being written
                continue
            if status in RUNNING and any(copy.samefile(each) for each in found if copy.is_dir()):
                yield copy


def experiments(root: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the name of each dvc.lock that DVC's experiments have in git, and what reads it. Raises ConfigError."""
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return
    for ref in git(root, "for-each-ref", "--format=%(refname)", "refs/exps").decode().splitlines():
        if git(root, "ls-tree", "--name-only", ref, "dvc.lock"):
            yield f"dvc.lock of {ref}", partial(git, root, "show", f"{ref}:./dvc.lock")


def git(root: Path, *words: str) -> bytes:
    """Return what git says. Raises ConfigError where it cannot be asked."""
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        raise ConfigError(
            f"git cannot say what DVC's experiments need: {' '.join(said.decode(errors='replace').split())}",
            hint="nothing was removed",
        ) from error


def md5s_in(value: Any) -> Iterator[str]:
    """Yield every "md5" in what a file of DVC's holds."""
    if isinstance(value, dict):
        if isinstance(value.get("md5"), str):
            yield value["md5"]
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from md5s_in(each)


def names_of(record: Record) -> set[str]:
    """Return the objects that a record stands for: its files, their listing, and the record itself."""
    files = {file.md5 for file in record.tree.files.values()}
    return {*files, f"{record.tree.listing_digest.md5}.dir", name_of(record)}


def name_of(record: Record) -> str:
    """Return the object that a record is in the cache, as an out of its node in dvc.lock."""
    return hash_bytes(record.data).md5


def folder_of(checkout: Checkout, path: Path, record: Record) -> Path:
    """Return the folder beside a record of the workspace, or a bundle's."""
    device = (record.ingredients.get("device") or {}).get("")
    return checkout.project.artifacts / device if device else path.with_suffix("")


def remove(checkout: Checkout, garbage: Garbage) -> None:
    """Remove it, in an order in which a kill leaves nothing wrong. Raises StoreError."""
    project, history = checkout.project, history_of(checkout.project)
    for build in garbage.unnamed:
        history.write(replace(build, name=None))
    if garbage.objects:
        write_sealed(left_over_file(checkout), {"objects": sorted(garbage.objects)})
    for path in garbage.workspace:  # a folder before its record, which would otherwise be nobody's
        checkout.store.discard(path)
    unlink(garbage.records)
    unlink(checkout.store.object_path(name) for name in garbage.objects)
    unlink(garbage.logs)
    for build in garbage.trimmed:
        history.write(replace(build, name=None, dropped=True))
    for build in garbage.builds:
        history.drop(build)
    unlink([left_over_file(checkout)])
    for folder in (*project.state.glob("ledger/??"), *checkout.store.objects.glob("??")):
        if not any(folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def left_over(checkout: Checkout) -> set[str]:
    """Return the objects that a gc which was killed wanted to remove; a build since may need some again."""
    return set((read_sealed(left_over_file(checkout)) or {}).get("objects", ()))


def left_over_file(checkout: Checkout) -> Path:
    return checkout.project.state / "gc.json"


def unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with storing(path):
            path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size if path.is_file() else 0


def amount(size: int) -> str:
    """Return a number of bytes in words."""
    return f"{size} bytes" if size < 2**20 else f"{size / 2**20:.1f} MiB"
