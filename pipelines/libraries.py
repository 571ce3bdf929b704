"""Which version of a library is installed: a part of the keys of the stages that declare it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from functools import cache

from pipelines.errors import ConfigError


@cache
def version(library: str, stage: str) -> str:
    """Return the installed version of a distribution, or of the interpreter for "python"."""
    if library == "python":
        return platform.python_version()
    found = installed().get(normal(library))
    if found:
        return found
    from importlib import metadata  # 40 ms that are rarely needed

    try:
        return metadata.version(library)
    except (metadata.PackageNotFoundError, ValueError) as error:  # ValueError: no name at all
        raise ConfigError(
            f"stage {stage}: library '{library}' is not installed", hint=f"install it: pip install {library}"
        ) from error


@cache
def installed() -> dict[str, str]:
    """Return {distribution: version} by the names of the .dist-info folders: reading their files takes 1 ms each."""
    found: dict[str, str] = {}
    for folder in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder or "."):
                if name.endswith(".dist-info") and name.count("-") == 2:
                    library, _, version = name.removesuffix(".dist-info").partition("-")
                    found.setdefault(normal(library), version)
    return found


def normal(library: str) -> str:
    return re.sub(r"[-_.]+", "_", library).lower()
