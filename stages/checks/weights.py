"""Calibration, and formats that a device must hold."""

from __future__ import annotations

import re

from pipelines.errors import ConfigError
from stages.checks.training import distillation
from stages.lowering.limits import block_size
from stages.quantizers.candidates import check_candidates
from stages.quantizers.choices import Choice, allocates, check_choices
from stages.quantizers.choices import uses_statistics as choices_use_statistics
from stages.schema import CalibrateConfig, DeviceProfile, Format, QuantizeConfig, Runtime, SensitivityConfig

# Where the bits of each role are said; check_choices gives their choices first, in the order of Role.
_KEYS = ("bits", "head", "embeddings", "convolutions", "spatial")
# What takes the place of a property that a device cannot hold.
_WITHOUT = {
    "palette-vectors": {"vector": "1"},
    "palette-channel-scales": {"channel_scale": "false"},
    "sparse": {"sparsity": "0", "sparsity_pattern": "null"},
}


def weight_formats(config: QuantizeConfig, device: DeviceProfile) -> None:
    """Raise ConfigError where `device`'s runtime cannot hold the weights that `config` asks for, or nobody can."""
    if config.training:
        distillation(config.training, where="quantize.training")
    runtime = f"{device.name} ({device.runtime.value})"
    if config.activations and device.runtime is Runtime.coreml:
        raise ConfigError(
            f"quantize: {runtime} rounds no activations; quantize.activations is {config.activations}",
            hint="Set quantize.activations=0, or build for a device of ONNX Runtime.",
        )
    keys = () if allocates(config) else _KEYS
    for index, choice in enumerate(check_choices(config)):
        missing = [name for name in choice.needs() if name not in device.weight_formats]
        if missing:
            raise ConfigError(
                f"quantize: {runtime} cannot hold {missing[0]} weights; it can hold {', '.join(device.weight_formats)}",
                hint=_instead(choice, missing[0], keys[index] if index < len(keys) else "", device),
            )
        grouped = choice.bits and choice.format is Format.affine and choice.group_size
        if device.runtime is Runtime.onnxruntime and grouped and block_size(0, choice.group_size) is None:
            raise ConfigError(
                f"quantize: {runtime} cannot hold groups of {choice.group_size} weights; expected a multiple of 16",
                hint=f"for this device, '+device.{device.name}.overrides.quantize.group_size=32'; 0 is one scale a row",
            )


def uses_statistics(config: QuantizeConfig, device: DeviceProfile) -> bool:
    """Whether quantizing needs a calibration."""
    return choices_use_statistics(config)


def allocates_for(config: QuantizeConfig, device: DeviceProfile) -> bool:
    """Whether formats are chosen for each weight by measurement."""
    return allocates(config)


def calibration(config: CalibrateConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where nothing would be drawn."""
    for key, least in (("samples", 1), ("batch", 1), ("tokens", 2), ("threads", 1)):
        if getattr(config, key) < least:
            raise ConfigError(f"calibrate.{key} is {getattr(config, key)}", hint=f"expected {least} or more")
    for key in ("image_token_weight", "answer_token_weight"):
        if getattr(config, key) < 0:
            raise ConfigError(
                f"calibrate.{key} is {getattr(config, key)}",
                hint="expected 0 or more; 1 counts such a token as any token of text",
            )


def sensitivity(config: SensitivityConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where nothing would compete, be drawn, or where a candidate is none."""
    for key in ("samples", "batch"):
        if getattr(config, key) < 1:
            raise ConfigError(f"sensitivity.{key} is {getattr(config, key)}", hint="expected 1 or more; 128 is usual")
    if config.prune < 1:
        raise ConfigError(f"sensitivity.prune is {config.prune}", hint="expected 1 or more; 4 is usual")
    if not config.candidates:
        raise ConfigError(
            "sensitivity.candidates is empty", hint="conf/sensitivity/default.yaml has a list to begin with"
        )
    check_candidates(config)


def _instead(choice: Choice, missing: str, key: str, device: DeviceProfile) -> str:
    """The nearest that the device holds: first of the same kind, then of as many bits; then how to ask for it."""
    prefix = f"+device.{device.name}.overrides.quantize"
    if missing in _WITHOUT:
        return "for this device, " + " ".join(f"'{prefix}.{k}={v}'" for k, v in _WITHOUT[missing].items())

    def distance(name: str) -> tuple[bool, int, int]:
        bits = _bits(name)
        return not name.startswith(choice.format.value), abs(bits - choice.bits), -bits

    held = [name for name in device.weight_formats if _bits(name)]
    if not held:
        return f"choose quantize=none: {device.name} holds unquantized weights only"
    best = min(held, key=distance)
    changes = {}
    if not best.startswith(choice.format.value):
        changes["format"] = best.split("-")[0]
        if choice.method.value != "gptq":
            changes["method"] = "gptq"
    if _bits(best) != choice.bits:
        changes[key] = str(_bits(best))
    if not key:
        return f"the nearest is {best}; say so in that entry of quantize.overrides"
    return f"the nearest is {best}; for this device, " + " ".join(f"'{prefix}.{k}={v}'" for k, v in changes.items())


def _bits(name: str) -> int:
    """Of affine-int4 and palette-4, 4; of float16, 0."""
    found = re.fullmatch(r"(?:affine-int|palette-)(\d+)", name)
    return int(found[1]) if found else 0
