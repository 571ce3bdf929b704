"""The key of a node: the sha256 of all that can change its result.

Source of the stage's module and of what it imports from this project, without comments and docstrings; the versions of
the libraries that the stage declares; its slice of the resolved configuration and of the device's profile; the contents
of its inputs, of external inputs and of other project files that it declares. Where inputs lie is no part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.digests import Digests, hash_json
from pipelines.errors import ConfigError, PlanError, TapeoutError, nearest, suggestion
from pipelines.libraries import version
from pipelines.patterns import matches
from pipelines.plan import Node, is_elsewhere, source_path
from pipelines.project import Project
from pipelines.sources import Sources

ENGINE = 1  # raised when the framework changes what a stage is given, so that its results change


class Keys:
    """Computes what goes into the keys of a project's nodes."""

    def __init__(self, project: Project, digests: Digests) -> None:
        self.project = project
        self.digests = digests
        self.sources = Sources(project.import_roots, digests)
        self._known: dict[str, dict[str, Any]] = {}
        self._code: dict[str, dict[str, str]] = {}

    def ingredients(self, node: Node, inputs: Mapping[str, str]) -> dict[str, Any]:
        """Return what the key of `node` is made of; inputs: {parameter: digest}. Raises as `known` does."""
        return {**self.known(node), "inputs": dict(inputs)}

    def known(self, node: Node) -> dict[str, Any]:
        """Return all ingredients but the inputs: what can be known before anything has run.

        Raises ConfigError for an external input or a library that is not there, PlanError for a stage without source.
        """
        if node.name not in self._known:
            stage = node.stage
            self._code[node.name] = {name: self.sources.sha256(path) for name, path in self.module_files(node).items()}
            self._known[node.name] = {
                "engine": ENGINE,
                "run": stage.run,
                "libraries": {name: version(name, stage.name) for name in stage.libraries},
                "config": {key: value for key, value in (node.config or {}).items() if key not in stage.sources},
                "device": {**(node.device or {}), "": node.devices[0]} if stage.bundle else node.device,
                **({"devices": node.profiles} if stage.devices else {}),
                **self.contents(node),
            }
        return self._known[node.name]

    def contents(self, node: Node) -> dict[str, dict[str, str]]:
        """Return the ingredients that lie in files which anybody may edit while a build runs."""
        stage = node.stage
        return {
            "modules": self.modules(node),
            "sources": {key: hash_json(self.source(node, key)) for key in stage.sources},
            "reads": {name: self.digests.of(path).sha256 for name, path in self.reads(node).items()},
        }

    def edited(self, node: Node, executed: Mapping[str, str] | None = None) -> str:
        """Return what has been edited since `known` was asked for the node, in words; "" where nothing has.

        executed: {module: sha256 of its bytes}; code that was edited and put back meanwhile is found by it.
        """
        old, code = self.known(node), self._code[node.name]
        self.sources = Sources(self.project.import_roots, self.digests)  # modules may have come that hide others
        try:
            now = self.contents(node)
            files = self.module_files(node)
        except TapeoutError as error:
            return error.message
        names = [
            name for part in now for name in {**now[part], **old[part]} if now[part].get(name) != old[part].get(name)
        ]
        for name, sha256 in (executed or {}).items():
            if name in files and name not in names and sha256 not in (code.get(name), self.sources.sha256(files[name])):
                names.append(name)
        return ", ".join(names)

    def modules(self, node: Node) -> dict[str, str]:
        """Return {module: digest of its meaning} for the stage's code."""
        return {name: self.sources.meaning(path) for name, path in self.module_files(node).items()}

    def module_files(self, node: Node) -> dict[str, Path]:
        """Return {module: file} for the stage's code."""
        self.sources.adopt(node.stage.module)
        found = self.sources.closure(node.stage.module)
        if node.stage.schemas and (node.stage.config or node.stage.device or node.stage.devices):
            found = {**self.sources.closure(node.stage.schemas.rpartition(".")[0]), **found}
        for module in node.code:
            self.sources.adopt(module)
            found = {**found, **self.sources.closure(module)}
        for key, name in [("run", node.stage.run), *(("calls", each) for each in node.stage.calls)]:
            module = name.rpartition(".")[0]
            self.sources.adopt(module)
            found = {**found, **self.sources.closure(module)}
            self.check_function(found, name, f"stage {node.stage.name}: {key}")
        return found

    def check_function(self, found: Mapping[str, Path], name: str, where: str) -> None:
        """Raise PlanError where the project's modules `found` have no function `name`."""
        module, _, function = name.rpartition(".")
        if module not in found:
            raise PlanError(
                f"{where}: {name}: there is no module {module}",
                hint="it must lie in the project, beside a --config-dir, or be installed",
            )
        names = self.sources.names(found[module])
        if function not in names:
            raise PlanError(
                f"{where}: module {module} has no function '{function}'", hint=suggestion(function, names, "it has")
            )

    def source(self, node: Node, key: str) -> dict[str, str]:
        """Return what an external input is known by: the contents of its files, or its URI."""
        value = (node.config or {})[key]
        return {"uri": str(value)} if is_elsewhere(value) else self.source_files(node, key, names_in_project=False)

    def source_files(self, node: Node, key: str, names_in_project: bool = True) -> dict[str, str]:
        """Return {path: sha256} of an external input's files; paths are the project's, or relative to the input."""
        base = source_path(self.project, node, key)
        found: dict[str, str] = {}
        for path in self.source_paths(node, key):
            within = (
                "" if path == base else path.relative_to(base if path.is_relative_to(base) else base.parent).as_posix()
            )
            found[self.project.relative(path) if names_in_project else within] = self.digests.of(path).sha256
        return found

    def source_paths(self, node: Node, key: str) -> list[Path]:
        """Return the files of an external input, or the .dvc file of one that DVC tracks and that is not here.

        A URI has none, and nor has null. Raises ConfigError where the input is not there.
        """
        path, kind = source_path(self.project, node, key), node.stage.sources[key]
        if is_elsewhere((node.config or {})[key]):
            return []
        if not path.exists() and (tracked := path.with_name(path.name + ".dvc")).is_file():
            return [tracked]  # the stage has DVC fetch it
        if not (path.is_file() if kind == "file" else path.is_dir()):
            raise missing_source(node, key, path, "file" if kind == "file" else "folder")
        if kind == "file":
            return [path]
        patterns = ("**/*",) if kind == "folder" else tuple(kind)
        return sorted({each for pattern in patterns for each in matches(path, pattern)})

    def reads(self, node: Node) -> dict[str, Path]:
        """Return {path relative to the project: file} of what the stage declares to read."""
        found = {each for pattern in node.stage.reads for each in matches(self.project.root, pattern)}
        return {self.project.relative(each): each for each in sorted(found)}


def missing_source(node: Node, key: str, path: Path, kind: str) -> ConfigError:
    """Return the error for an external input that is not where the configuration says."""
    name = f"{node.stage.config}.{key}"
    found = "is not there" if not path.exists() else f"is not a {kind}"
    beside: Iterable[str] = (each.name for each in path.parent.iterdir()) if path.parent.is_dir() else ()
    hint = " ".join(filter(None, [nearest(path.name, beside), f"Set {name}=PATH."]))
    return ConfigError(f"{name}: the {kind} {path} {found}", hint=hint)
