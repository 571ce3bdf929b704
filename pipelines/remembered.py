"""What conf/ came to last time, so that Hydra, slow to start, is asked only when something has changed.

An entry counts while nothing is different that composing or checking reads: the overrides, every file in conf/ and in
the user's folders, the types of the groups (see `shape`), the versions of Hydra and OmegaConf, and the code here. A
configuration that may read something else too (a resolver as in ${oc.env:HOME}, Hydra's own settings or plugins) is not
remembered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import re
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from pipelines.digests import hash_json
from pipelines.errors import StoreError
from pipelines.libraries import version
from pipelines.project import Project
from pipelines.sealed import read_sealed, write_sealed

KEPT = 32  # configurations remembered
ELSEWHERE = re.compile(rb"\$\{[^}]*:|(?m:^\s*-?\s*[{\"']?/?(?:override )?hydra\b)")  # what may read more than conf/
READERS = ("choices.py", "compose.py", "config.py", "spec.py", "typed.py", "remembered.py")


def recall(project: Project, mark: str | None) -> dict[str, Any] | None:
    """Return what `remember` was given for the configuration that `mark_of` has told, or None."""
    return read_sealed(file_of(project, mark)) if mark else None


def remember(project: Project, mark: str | None, value: dict[str, Any]) -> None:
    """Remember what a configuration came to. mark: what `mark_of` said of it before it was composed, and says still."""
    if not mark:
        return
    path = file_of(project, mark)
    with contextlib.suppress(StoreError):  # a project that cannot be written can still be planned
        write_sealed(path, value)
        for old in sorted(path.parent.glob("*.json"), key=os.path.getmtime)[:-KEPT]:
            old.unlink(missing_ok=True)


def file_of(project: Project, mark: str) -> Path:
    return project.state / "configurations" / f"{mark}.json"


def mark_of(project: Project, overrides: list[str]) -> str | None:
    """Return the digest of all that is composed, or None where more may be read than can be seen from here."""
    if any(ELSEWHERE.search(each.encode()) for each in overrides) or importlib.util.find_spec("hydra_plugins"):
        return None
    files: dict[str, str] = {}
    for place, folder in enumerate((project.conf, *project.config_dirs)):
        for base, _, names in os.walk(folder, followlinks=True):
            where = f"{place}:{os.path.relpath(base, folder)}"
            files[where] = ""
            for name in names:
                if name.endswith((".yaml", ".yml")):
                    path = os.path.join(base, name)
                    if not os.path.isfile(path):  # a link that leads nowhere: an editor's lock
                        continue
                    with open(path, "rb") as file:
                        data = file.read()
                    if ELSEWHERE.search(data):
                        return None
                    files[f"{where}/{name}"] = hashlib.sha256(data).hexdigest()
    home = os.path.dirname(__file__)
    code = [file_digest(os.path.join(home, name)) for name in READERS]
    libraries = [version(name, "") for name in ("python", "hydra-core", "omegaconf")]
    return hash_json([overrides, sorted(files.items()), code, libraries])


def shape(kind: Any) -> Any:
    """Return all of a type that a value is checked against, as JSON can hold it."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return [[field.name, shape(hints[field.name]), default_of(field)] for field in dataclasses.fields(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [[each.name, str(each.value)] for each in kind]
    return [str(typing.get_origin(kind) or kind), [shape(each) for each in typing.get_args(kind)]]


def default_of(field: dataclasses.Field[Any]) -> str | None:
    """Return a field's default in words, or None where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return None if field.default is dataclasses.MISSING else repr(field.default)


def file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
