"""What this machine is, for whoever reads its figures; no names of it, and none of its users."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("onnxruntime", "torch", "numpy")


def machine() -> dict[str, Any]:
    """{"cpu", "architecture", "cores", "system", "python", "libraries": {name: version}}; cores: that may be used."""
    return {
        "cpu": processor(),
        "architecture": platform.machine(),
        "cores": len(usable_cores()),
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := installed(name))},
    }


def processor() -> str:
    """The processor's name, as the system tells it; "" where it does not."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor()


def usable_cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
