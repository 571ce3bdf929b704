"""Which of the project's modules a stage is made of, and what they say once comments and docstrings are left out."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.digests import Digests

PARSER = 1  # raised when `parse` finds something else in the same file, so that what is remembered is not used


class Sources:
    """Finds modules under `roots`, the folders from which this project's code is imported."""

    def __init__(self, roots: list[Path], digests: Digests) -> None:
        self.roots = roots
        self.digests = digests
        self._closures: dict[str, dict[str, Path]] = {}
        self._found: dict[str, Path | None] = {}

    def closure(self, module: str) -> dict[str, Path]:
        """Return {name: file} of `module` and of all project modules that it imports, directly or not.

        Imports inside functions count, and so do literal calls of import_module. What is imported by a computed name is
        not seen, nor are data files: a stage declares those under `reads`.
        """
        if module not in self._closures:
            found: dict[str, Path] = {}
            queue = [module]
            while queue:
                name = queue.pop()
                path = self.find(name)
                if path is not None and name not in found:
                    found[name] = path
                    queue += [name.rpartition(".")[0], *self._imports(name, path)]
            self._closures[module] = dict(sorted(found.items()))
        return self._closures[module]

    def find(self, module: str) -> Path | None:
        """Return the file of a project module, or None for a module of somebody else's or none at all."""
        if module not in self._found:
            self._found[module] = next((path for path in self._candidates(module) if path.is_file()), None)
        return self._found[module]

    def adopt(self, module: str) -> None:
        """Count the package of `module`, a stage's own, to the project, even if it is installed elsewhere."""
        package = module.partition(".")[0]
        if package and self.find(package) is None and not self._is_namespace(package):
            spec = importlib.util.find_spec(package)
            if spec is not None and spec.origin not in (None, "built-in", "frozen"):
                self._found[package] = Path(str(spec.origin))
                self.roots.append(Path(str(spec.origin)).parent.parent)

    def meaning(self, path: Path) -> str:
        """Return the sha256 of a module's source without comments, docstrings and layout."""
        return str(self._parsed(path)["meaning"])

    def names(self, path: Path) -> list[str]:
        """Return what a module defines or imports at its top."""
        return list(self._parsed(path)["names"])

    def _is_namespace(self, package: str) -> bool:
        return any((root / package).is_dir() for root in self.roots)

    def _candidates(self, module: str) -> Iterator[Path]:
        for root in self.roots if module else []:
            base = root.joinpath(*module.split("."))
            yield base / "__init__.py"
            yield base.with_name(base.name + ".py")

    def _imports(self, name: str, path: Path) -> Iterator[str]:
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for level, module, names in self._parsed(path)["imports"]:
            if level:
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - level + 1])
                module = f"{base}.{module}" if module else base
            yield module
            yield from (f"{module}.{each}" for each in names)

    def _parsed(self, path: Path) -> dict[str, Any]:
        parsed: dict[str, Any] = self.digests.memo(path, f"source-{PARSER}-{platform.python_version()}", parse)
        return parsed


def parse(path: Path) -> dict[str, Any]:
    """Return {"meaning": sha256, "imports": [[level, module, [names]]], "names": [...]}, without running the file."""
    data = path.read_bytes()
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):
        return {"meaning": hashlib.sha256(data).hexdigest(), "imports": [], "names": []}
    names = [name for node in tree.body for name in names_of(node)]
    imports = [found for node in ast.walk(tree) for found in imports_of(node)]
    drop_docstrings(tree)
    return {"meaning": hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), "imports": imports, "names": names}


def imports_of(node: ast.AST) -> Iterator[list[Any]]:
    """Yield [level, module, names] for an import statement or a literal import_module call."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield [0, alias.name, []]
    elif isinstance(node, ast.ImportFrom):
        yield [node.level, node.module or "", [alias.name for alias in node.names]]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
        first = node.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield [0, first.value, []]


def names_of(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a top-level statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def drop_docstrings(tree: ast.Module) -> None:
    """Remove the docstrings of a module, its classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
