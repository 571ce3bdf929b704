"""Builds a bundle again from its provenance, in a clean folder, and compares bytes: `tapeout verify BUNDLE --rebuild`.

It proves that the bundle is what the sources say, on the word of nobody: not of who signed it, not of who built it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, VerificationError
from pipelines.project import Project
from pipelines.provenance import SOURCE, read_statement
from stages.release.manifest import Manifest, lies_inside, read
from stages.release.signing.keys import PASSPHRASE

EXTERNAL = "<external>"


def rebuild(
    manifest: Manifest,
    statement: Mapping[str, Any],
    project: Project,
    source: Path | None,
    settings: Sequence[str] = (),
) -> list[str]:
    """Return what differs between the bundle and what its sources give, nothing where they are the same bytes.

    source: a folder to take the sources from, instead of the commit that the statement names, which `project` must
    hold. settings: overrides in place of those that name what lay outside the project when it was built. Raises
    ConfigError where it cannot be tried, VerificationError where the sources do not build.
    """
    definition = statement["predicate"]["buildDefinition"]
    overrides = overrides_of(definition["externalParameters"], settings)
    folders = config_dirs_of(definition["externalParameters"])
    with tempfile.TemporaryDirectory(prefix="tapeout-rebuild-") as name:
        folder = Path(name, "project")
        if source is None:
            take_commit(project, revision(definition), folder)
        else:
            take_folder(source, folder)
        check_clean(folder, manifest.device)
        for line in other_libraries(definition):
            print(line, file=sys.stderr)
        build(folder, overrides, folders)
        return list(differences(manifest, statement, Project(folder)))


def overrides_of(parameters: Mapping[str, Any], settings: Sequence[str]) -> list[str]:
    """Return the overrides to build with. Raises ConfigError where one named a place that is not known here."""
    given = {each.partition("=")[0].lstrip("+"): each for each in settings}
    found = []
    for override in parameters.get("overrides", []):
        name, _, value = str(override).partition("=")
        if name.lstrip("+") in given:
            found.append(given.pop(name.lstrip("+")))
        elif str(override).startswith("-"):
            raise VerificationError(f"its provenance has the override {override!r}, which is an option of a command")
        elif value.startswith(EXTERNAL):
            raise ConfigError(
                f"it was built with {override}: something outside the project, known by its contents",
                hint=f"say where that is here: --set {name}=PATH",
            )
        else:
            found.append(str(override))
    if given:
        raise ConfigError(f"--set {next(iter(given.values()))}: it was not built with that", hint=shlex.join(found))
    return found


def config_dirs_of(parameters: Mapping[str, Any]) -> list[str]:
    """Return the user's own configuration folders, which must lie in the project. Raises ConfigError,
    VerificationError."""
    folders = [str(each) for each in parameters.get("config_dirs", [])]
    for each in folders:
        if each.startswith(EXTERNAL):
            raise ConfigError(
                f"it was built with --config-dir {each}, which lay outside the project",
                hint="only what the project's own sources say can be built again",
            )
        if not lies_inside(each):
            raise VerificationError(f"its provenance has the configuration folder {each!r}, no path inside a project")
    return folders


def revision(definition: Mapping[str, Any]) -> str:
    """Return the commit that the sources were at. Raises ConfigError where there was none, or more than it."""
    found = next((each for each in definition["resolvedDependencies"] if each.get("name") == SOURCE), {})
    commit = (found.get("digest") or {}).get("gitCommit")
    notes = found.get("annotations") or {}
    if not commit:
        raise ConfigError(
            "the sources that it was built from were in no git repository",
            hint="with the folder of these sources: --rebuild --source DIR",
        )
    if notes.get("dirty"):
        changed = ", ".join(notes.get("changed", [])[:5])
        raise ConfigError(
            f"it was built from sources that were never committed: beside {commit[:12]}, {changed} had changed",
            hint="with the folder of these sources: --rebuild --source DIR; or commit them, build and sign again",
        )
    return str(commit)


def take_commit(project: Project, commit: str, folder: Path) -> None:
    """Write the project's files as `commit` has them. Raises ConfigError where the repository does not hold it."""
    archive = folder.with_suffix(".tar")
    words = ["git", "-C", str(project.root), "archive", "--format=tar", "-o", str(archive), commit]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
        told, failed = done.stderr.strip(), done.returncode != 0
    except OSError as cause:
        told, failed = str(cause), True
    if failed:
        raise ConfigError(
            f"{project.root} does not hold the commit {commit} that it was built from: {told}",
            hint="clone the project's repository, or 'git fetch' in it, and verify there",
        )
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                check_link(member)
            tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # Python 3.11.4
    except (tarfile.TarError, OSError) as cause:
        raise VerificationError(f"the files of commit {commit} cannot be laid out: {cause}") from cause
    archive.unlink()


def check_link(member: tarfile.TarInfo) -> None:
    """Raise VerificationError for a link of a commit that leads out of it."""
    target = os.path.normpath(os.path.join(os.path.dirname(member.name), member.linkname))
    if (member.issym() or member.islnk()) and (os.path.isabs(member.linkname) or target.split("/")[0] == ".."):
        raise VerificationError(f"its commit holds the link {member.name}, which leads to {member.linkname}")


def take_folder(source: Path, folder: Path) -> None:
    """Copy the sources in a folder that are not ignored by git; raises ConfigError where it holds no project."""
    if not (source / "conf").is_dir() or not (source / "pyproject.toml").is_file():
        raise ConfigError(f"--source {source}: no project's folder", hint="it holds conf/ and pyproject.toml")
    words = ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(words, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError) as cause:
        raise ConfigError(
            f"--source {source}: git does not say which of its files are sources: {cause}",
            hint="'git init' there; .gitignore then leaves out what was built",
        ) from cause
    for name in filter(None, names):
        if (source / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((source / name).read_bytes())


def check_clean(folder: Path, device: str) -> None:
    """Raise VerificationError where the sources hold what only a build makes: it could pass for what they give."""
    for name in (".tapeout", ".dvc/cache", "artifacts/build", f"artifacts/{device}"):
        if (folder / name).exists():
            raise VerificationError(
                f"its sources hold {name}, which a build makes: what would be built again could come from there",
                hint="remove it from the commit; .gitignore should leave it out",
            )


def build(folder: Path, overrides: Sequence[str], config_dirs: Sequence[str]) -> None:
    """Build all anew: the folder remembers nothing. Raises VerificationError where that fails."""
    command = [sys.executable, "-m", "pipelines.cli", "build"]
    for each in config_dirs:
        command += ["--config-dir", each]
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    print(f"building again: {shlex.join(['tapeout', 'build', *overrides])}", file=sys.stderr)
    done = subprocess.run(
        [*command, *overrides, "tracking=none"],
        cwd=folder,
        env={**{name: value for name, value in os.environ.items() if name != PASSPHRASE}, "PYTHONPATH": paths},
        stdout=sys.stderr.fileno() if has_descriptor() else subprocess.DEVNULL,
    )
    if done.returncode not in (0, 1):  # 1: another device may have failed
        raise VerificationError(
            "its sources do not build with the overrides in its provenance; why, is above",
            hint="the provenance, the commit or the installed Tapeout is not what it was built with",
        )


def has_descriptor() -> bool:
    """Say whether standard error is a real file, which it is not in a test."""
    try:
        return sys.stderr.fileno() >= 0
    except OSError:
        return False


def other_libraries(definition: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each library that is here in another version than the one that built the bundle."""
    for each in definition["resolvedDependencies"]:
        kind, _, rest = str(each.get("uri", "")).partition("/")
        name, _, version = rest.partition("@")
        if kind != "pkg:pypi" or not version:
            continue
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = "none"
        if here != version:
            yield f"note: {name} {version} built it, and {here} is installed here; bytes may differ for that alone"


def differences(manifest: Manifest, statement: Mapping[str, Any], project: Project) -> Iterator[str]:
    """Yield what differs, file by file, and which stage was the first to give something else."""
    rebuilt = read_statement(project, manifest.device)
    if rebuilt is None:  # whatever lies there, this build has not made it
        yield f"built again, there is no bundle for {manifest.device}: a stage or gate failed, or it was not asked for"
        return
    again = read(project.artifacts / manifest.device)
    if again.digest == manifest.digest:
        return
    before, after = ({file.path: file.sha256 for file in each.files} for each in (manifest, again))
    for path in sorted({**before, **after}):
        if before.get(path) != after.get(path):
            yield f"{path}: sha256 {before.get(path, 'none')}, and built again {after.get(path, 'none')}"
    if before == after:
        yield f"manifest.json: sha256 {manifest.digest}, and built again {again.digest}; all other files are the same"
    if stage := first_difference(statement, rebuilt):
        yield f"the first stage to give something else: {stage}"


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the first node whose artifact differs, "" where there is none."""
    found = [
        {each["name"]: each["digest"]["sha256"] for each in statement["predicate"]["runDetails"]["byproducts"]}
        for statement in (one, other)
    ]
    return next((name for name, digest in found[0].items() if name != "bundle" and found[1].get(name) != digest), "")
