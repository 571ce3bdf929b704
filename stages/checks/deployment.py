"""Sizes and processors that a runtime must take."""

from __future__ import annotations

from pipelines.errors import ConfigError
from stages.lowering.limits import HEXAGON, Problem, chunk_size, coreml_sizes, coreml_system
from stages.lowering.socs import hexagon_problem
from stages.runtimes.processor import machine
from stages.schema import ConvertConfig, DeviceProfile, Prepacking, ProbeConfig, Runtime


def sizes(config: ConvertConfig, device: DeviceProfile) -> None:
    """Raise ConfigError where `device`'s runtime cannot have the context or the chunk that `config` says."""
    if problem := _processor(device):
        name = f"device.{device.name}"
        raise ConfigError(f"{name}: {problem[0]}", hint=problem[1].replace("Set ", f"set {name}.").rstrip("."))
    if device.runtime is Runtime.coreml:
        problem = coreml_sizes(config.context, config.prefill_chunk)
    elif config.context < 1:
        problem = f"context is {config.context}; expected 1 or more", "Set context=256."
    else:
        problem = chunk_size(config.context, config.prefill_chunk)
    if problem:
        hint = problem[1].replace("Set ", "set convert.").rstrip(".")
        raise ConfigError(
            f"convert, for {device.name}: {problem[0]}",
            hint=f"{hint}; for this device alone, '+device.{device.name}.overrides.{hint.removeprefix('set ')}'",
        )


def _processor(device: DeviceProfile) -> Problem | None:
    """Why nothing could be made for the device's processor or system."""
    if device.runtime is Runtime.coreml:
        return coreml_system(device.minimum_os)
    if device.prepacking is Prepacking.saved and device.architecture != machine():
        return (
            f"prepacking=saved, for {device.architecture}, and this machine is {machine()}: weights are laid out ahead "
            "for the kind of processor that the build runs on",
            "Set prepacking=load.",
        )
    if device.compile_for is None:
        return None
    if HEXAGON not in device.execution_providers:
        return (
            f"compile_for is '{device.compile_for}', and {HEXAGON} is not among its execution providers",
            f"Set execution_providers=[{HEXAGON},CPUExecutionProvider].",
        )
    return hexagon_problem(device.compile_for)


def computes_in_float16(config: ConvertConfig, device: DeviceProfile) -> bool:
    """Whether values may leave the range in which the runtime computes."""
    return device.runtime is Runtime.coreml or device.compile_for is not None


def probe(config: ProbeConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where nothing would be run."""
    for key in ("images", "tokens", "threads"):
        if getattr(config, key) < 1:
            raise ConfigError(f"probe.{key} is {getattr(config, key)}", hint="expected 1 or more")
