"""Artifacts and code on their way between machines that share no folder.

Artifacts go through a DVC remote, as the objects that `dvc push` would bring there, and every file is checked on
arrival: DVC's own library moves the bytes, so that any remote will do (a folder, ssh, S3 and the like). Code goes by
Ray's runtime environment, from the folder that `pack_code` fills.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pipelines
from pipelines.digests import Digests, FileDigest, hash_file
from pipelines.errors import ConfigError, StoreError, suggestion
from pipelines.patterns import matches
from pipelines.project import Project
from pipelines.sources import Sources
from pipelines.tree import Tree

IGNORED = shutil.ignore_patterns("__pycache__", ".*", "*.pyc")


def remote_settings(project: Project, name: str) -> dict[str, Any]:
    """Return the settings of the project's DVC remote `name`, as Remote takes them on any machine. Raises ConfigError.

    Passwords that .dvc/config.local holds are among them, and go to the workers.
    """
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.fs import get_fs_config

    if not (project.root / ".dvc" / "config").is_file():
        raise ConfigError(
            f"executor.store={name}: the project has no DVC remotes", hint="'dvc init' and 'dvc remote add'"
        )
    try:
        config = Config(str(project.root / ".dvc"))
        if name not in config["remote"]:
            hint = suggestion(name, ["shared", *config["remote"]], "stores")
            raise ConfigError(f"executor.store={name}: there is no such DVC remote", hint=hint)
        settings = get_fs_config(config, name=name)
    except DvcException as error:
        raise ConfigError(f"executor.store={name}: {error}") from error
    if settings.get("worktree") or settings.get("version_aware"):
        raise ConfigError(
            f"executor.store={name}: a remote with cloud versioning holds no objects", hint="name another DVC remote"
        )
    plain = {key: str(value) if isinstance(value, str) else value for key, value in settings.items()}
    Remote({**plain, "name": name})  # raises where a library for it is missing
    return {**plain, "name": name}


class Remote:
    """The objects of a DVC remote. Raises StoreError for whatever goes wrong on the way there and back."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from dvc.data_cloud import Remote as Cloud
        from dvc.fs import RemoteMissingDepsError, get_cloud_fs

        self.name = str(settings["name"])
        try:
            kind, config, path = get_cloud_fs({}, **{key: each for key, each in settings.items() if key != "name"})
            self.objects: Any = Cloud(self.name, path, kind(**config), **config).odb
        except RemoteMissingDepsError as error:
            raise ConfigError(f"the DVC remote '{self.name}': {error}") from error

    def push(self, folder: Path, tree: Tree) -> None:
        """Bring the files of `folder`, whose contents are `tree`, and its listing, where they are not there yet."""
        from dvc.fs import localfs

        paths = {digest.md5: str(folder / name) for name, digest in tree.files.items()}
        listing = tree.listing_digest.md5 + ".dir"
        with self.reached("written"):
            self.objects.add(list(paths.values()), localfs, list(paths), check_exists=True)
            if not self.objects.exists(listing):  # last: DVC takes it for a sign that the files are there
                self.objects.add_bytes(listing, tree.listing)

    def fetch(self, tree: Tree, folder: Path) -> None:
        """Bring the files of `tree` into `folder`, and check each. Raises StoreError for one that is damaged."""
        from dvc.fs import generic, localfs

        targets = {name: folder / name for name in tree.files}
        for path in targets.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        sources = [self.objects.oid_to_path(digest.md5) for digest in tree.files.values()]
        with self.reached("read"):
            generic.copy(self.objects.fs, sources, localfs, [str(path) for path in targets.values()])
        for (name, expected), source in zip(tree.files.items(), sources, strict=True):
            if FileDigest(*hash_file(targets[name])) != expected:
                raise StoreError(
                    f"the DVC remote '{self.name}' holds a damaged object: {source} is not {name}, sha256"
                    f" {expected.sha256}",
                    hint="remove it there and build again",
                )

    @contextlib.contextmanager
    def reached(self, done: str) -> Iterator[None]:
        """Turn the many errors of file systems and clouds into StoreError."""
        try:
            yield
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise StoreError(f"the DVC remote '{self.name}' cannot be {done}: {text}") from error


def pack_code(project: Project, runs: Iterable[str], reads: Iterable[str], into: Path) -> None:
    """Copy what the stages' code needs: this package, the top packages that it is in or imports, and its `reads`.

    runs: names of functions, as package.module.NAME. reads: patterns relative to the project. What is installed on the
    machines, as libraries are, is not copied.
    """
    roots = [root for root in project.import_roots if root.is_dir()]
    sources = Sources(roots, Digests(project.state / "digests.json"))
    modules = {name for run in runs for name in sources.closure(run.rpartition(".")[0])}
    shutil.copytree(Path(pipelines.__file__).parent, into / "pipelines", ignore=IGNORED)
    for top in sorted({name.partition(".")[0] for name in modules} - {"pipelines"}):
        for root in roots:
            if (root / top).is_dir():
                shutil.copytree(root / top, into / top, ignore=IGNORED, dirs_exist_ok=True)
            elif (root / f"{top}.py").is_file():
                shutil.copyfile(root / f"{top}.py", into / f"{top}.py")
            else:
                continue
            break
    for pattern in reads:
        for path in matches(project.root, pattern):
            target = into / path.relative_to(project.root)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
