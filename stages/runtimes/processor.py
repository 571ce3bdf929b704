"""The kind of processor that files with prepacked weights were made for."""

import platform

from pipelines.errors import LoweringError

_SAME = {"aarch64": "arm64", "arm64-v8a": "arm64", "amd64": "x86_64", "x86-64": "x86_64"}


def machine() -> str:
    """This machine's kind of processor: "arm64", "x86_64", or what the system calls another one."""
    return _one_name(platform.machine())


def check_machine(architecture: str) -> None:
    """Raises LoweringError where weights laid out for `architecture` would meet another processor, or come from one."""
    if _one_name(architecture) != machine():
        raise LoweringError(
            f"prepacked weights fit one kind of processor: this machine is {machine()}, the device {architecture}",
            hint=f"Choose prepacking=load, or build on a machine that is {architecture}.",
        )


def _one_name(architecture: str) -> str:
    return _SAME.get(architecture.lower(), architecture)
