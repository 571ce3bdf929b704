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

PARSER = 2  # raised when `parse` finds something else in the same file, so that what is remembered is not used


class Sources:
    """Finds modules under `roots`, the folders from which this project's code is imported."""

    def __init__(self, roots: list[Path], digests: Digests) -> None:
        self.roots = roots
        self.digests = digests
        self._closures: dict[str, dict[str, Path]] = {}
        self._located: dict[str, tuple[Path | None, list[Path]]] = {}

    def closure(self, module: str) -> dict[str, Path]:
        """Return {name: file} of `module` and of all project modules that it imports, directly or not.

        Imports inside functions count, and so do literal calls of import_module. What is imported by a computed name is
        not seen, nor are data files: a stage declares those under `reads`.
        """
        if module not in self._closures:
            found: dict[str, Path] = {}
            seen: set[str] = set()
            queue = [module]
            while queue:
                name = queue.pop()
                if not name or name in seen:
                    continue
                seen.add(name)
                queue.append(name.rpartition(".")[0])  # Python runs it first, even for a folder without __init__.py
                path = self.find(name)
                if path is not None:
                    found[name] = path
                    queue += self._imports(name, path)
            self._closures[module] = dict(sorted(found.items()))
        return self._closures[module]

    def find(self, module: str) -> Path | None:
        """Return the file of a project module, or None for a module of somebody else's or none at all."""
        return self._locate(module)[0]

    def adopt(self, module: str) -> None:
        """Count the package of `module`, a stage's own, to the project, even if it is installed elsewhere."""
        package = module.partition(".")[0]
        if package and self.find(package) is None and not self._is_namespace(package):
            spec = importlib.util.find_spec(package)
            if spec is not None and spec.origin not in (None, "built-in", "frozen"):
                self.roots.append(Path(str(spec.origin)).parent.parent)
                self._located.clear()

    def meaning(self, path: Path) -> str:
        """Return the sha256 of a module's source without comments, docstrings and layout."""
        return str(self._parsed(path)["meaning"])

    def sha256(self, path: Path) -> str:
        """Return the sha256 of a module's bytes."""
        return str(self._parsed(path)["sha256"])

    def names(self, path: Path) -> list[str]:
        """Return what a module defines or imports at its top."""
        return list(self._parsed(path)["names"])

    def _is_namespace(self, package: str) -> bool:
        return bool(self._locate(package)[1])

    def _locate(self, module: str) -> tuple[Path | None, list[Path]]:
        """Return a module's file and the folders in which its sub-modules are looked for, as Python finds them."""
        if module not in self._located:
            parent, _, name = module.rpartition(".")
            self._located[module] = look(self._locate(parent)[1] if parent else self.roots, name)
        return self._located[module]

    def _imports(self, name: str, path: Path) -> Iterator[str]:
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for level, module, names in self._parsed(path)["imports"]:
            if level:
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - level + 1])
                module = f"{base}.{module}" if module and base else base or module
            yield module
            for each in self._star(module) if names == ["*"] else names:
                yield f"{module}.{each}"

    def _star(self, module: str) -> list[str]:
        """Return what `from module import *` may import: what a literal __all__ says, all where it is computed."""
        path, folders = self._locate(module)
        listed = self._parsed(path)["all"] if path is not None else []
        if listed is not None:
            return list(listed)
        return sorted({each.stem for folder in folders for each in folder.iterdir()} - {"__init__"})

    def _parsed(self, path: Path) -> dict[str, Any]:
        parsed: dict[str, Any] = self.digests.memo(path, f"source-{PARSER}-{platform.python_version()}", parse)
        return parsed


def look(folders: list[Path], name: str) -> tuple[Path | None, list[Path]]:
    """Return the file of the module `name` in the first of `folders` that has it, and where its sub-modules lie.

    Folders without __init__.py count, all of them, where none has the module.
    """
    spaces: list[Path] = []
    for folder in folders if name else []:
        base = folder / name
        if (base / "__init__.py").is_file():
            return base / "__init__.py", [base]
        if (file := folder / f"{name}.py").is_file():
            return file, []
        if base.is_dir():
            spaces.append(base)
    return None, spaces


def parse(path: Path) -> dict[str, Any]:
    """Return what a file says, without running it.

    {"sha256": of its bytes, "meaning": sha256, "imports": [[level, module, [names]]], "names": [...], "all": [names]};
    all is None where __all__ is computed, and [] where there is none.
    """
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):
        return {"sha256": sha256, "meaning": sha256, "imports": [], "names": [], "all": []}
    names = [name for node in tree.body for name in names_of(node)]
    nodes = list(ast.walk(tree))
    callees = {"import_module", "__import__"} | {
        alias.asname
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == "import_module" and alias.asname
    }
    imports = [found for node in nodes for found in imports_of(node, callees)]
    listed = all_of(tree, nodes)
    drop_docstrings(tree)
    meaning = hashlib.sha256(ast.unparse(tree).encode()).hexdigest()
    return {"sha256": sha256, "meaning": meaning, "imports": imports, "names": names, "all": listed}


def imports_of(node: ast.AST, callees: set[str]) -> Iterator[list[Any]]:
    """Yield [level, module, names] for an import statement or a literal call of one of `callees`."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield [0, alias.name, []]
    elif isinstance(node, ast.ImportFrom):
        yield [node.level, node.module or "", [alias.name for alias in node.names]]
    elif isinstance(node, ast.Call):
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        given = dict(zip(("name", "package", "", "fromlist"), node.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        name = literal(given.get("name"))
        if called in callees and isinstance(name, str):
            module = name.lstrip(".")
            package, listed = literal(given.get("package")), literal(given.get("fromlist"))
            level = len(name) - len(module)
            if level and isinstance(package, str):
                parts = package.split(".")
                level, module = 0, ".".join(filter(None, [*parts[: len(parts) - level + 1], module]))
            yield [level, module, [each for each in listed or () if isinstance(each, str)]]


def literal(node: ast.AST | None) -> Any:
    """Return the value of a string, or of a list or tuple of them; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        values = [each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        return values if len(values) == len(node.elts) else None
    return None


def all_of(tree: ast.Module, nodes: list[ast.AST]) -> list[str] | None:
    """Return the names in a module's __all__: [] where it has none, None where they are computed."""
    count = sum(isinstance(node, ast.Name) and node.id == "__all__" for node in nodes)
    if not count:
        return []
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if count == 1 and isinstance(node, ast.Assign | ast.AnnAssign) and getattr(targets[0], "id", "") == "__all__":
            value = literal(node.value)
            return value if isinstance(value, list) else None
    return None


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
