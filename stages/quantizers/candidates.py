"""What each weight could become: the configured candidates, as that weight can follow them, and for which device.

Light, since the plan asks it too: no torch here.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.errors import ConfigError
from stages.lowering.limits import block_size
from stages.quantizers.choices import Choice, Role, choices
from stages.schema import (
    Budget,
    Candidate,
    DeviceProfile,
    Format,
    Method,
    QuantizeConfig,
    Runtime,
    SensitivityConfig,
)

FLOAT = Choice(Method.rtn, Format.affine, 0, 0, True)
EIGHT_BITS = Choice(Method.rtn, Format.affine, 8, 0, True)
NEURAL_ENGINE = "neural_engine"


Shapes = Mapping[str, tuple[Role, tuple[int, ...]]]


def candidates(config: SensitivityConfig, shapes: Shapes) -> list[dict[str, Choice]]:
    """For each of config.candidates, in order, by weight name what it becomes there. A weight that cannot follow a
    candidate is left out."""
    settings, every = quantize_settings(config), []
    for candidate in config.candidates:
        wanted = {name: for_role(candidate, role) for name, (role, _) in shapes.items()}
        fitted = choices(settings, shapes, wanted)
        every.append({name: choice for name, choice in fitted.items() if not choice.reason})
    return every


def check_candidates(config: SensitivityConfig) -> None:
    """Raise ConfigError for a candidate that no weight can follow."""
    for index, candidate in enumerate(config.candidates):
        where = f"sensitivity.candidates[{index}]"
        if candidate.method is Method.awq:
            raise ConfigError(
                f"{where}: awq scales inputs that weights share", hint="Weights alone can be gptq or hqq."
            )
        if not candidate.bits:
            raise ConfigError(f"{where}: 0 bits", hint="float16 competes without being named; leave it out.")
        choices(
            quantize_settings(config), {where: (Role.language, (64, 64))}, {where: for_role(candidate, Role.language)}
        )


def quantize_settings(config: SensitivityConfig) -> QuantizeConfig:
    """How the candidates' methods run."""
    return QuantizeConfig(
        method=Method.auto,
        format=Format.affine,
        bits=8,
        group_size=0,
        symmetric=True,
        channel_scale=False,
        vector=1,
        embeddings=8,
        head=None,
        convolutions=8,
        spatial=8,
        sparsity=0.0,
        sparsity_pattern=None,
        overrides=[],
        damping=config.damping,
        activation_order=config.activation_order,
        scale_search=config.scale_search,
        refinement=config.refinement,
        importance=config.importance,
        activations=0,
        budget=Budget(bits=32.0, bytes=None, kl=None),
        training=None,
    )


def methods_of(config: SensitivityConfig | QuantizeConfig) -> dict[str, Any]:
    """How the methods run, as plain values: equal ones make equal codes."""
    values = {key: getattr(config, key) for key in ("damping", "activation_order", "scale_search", "refinement")}
    return values | {"importance": config.importance.value}


def for_role(candidate: Candidate, role: Role) -> Choice:
    """Embeddings have no second moment to compensate by; convolutions that are no matrices have 8 bits or float16."""
    if role is Role.spatial:
        return EIGHT_BITS
    choice = Choice(
        candidate.method,
        candidate.format,
        candidate.bits,
        candidate.group_size,
        candidate.symmetric,
        candidate.channel_scale,
        candidate.vector,
    )
    if role is not Role.embeddings:
        return choice
    if choice.format is Format.palette:
        return replace(choice, method=Method.kmeans)
    return choice if choice.method is Method.hqq else replace(choice, method=Method.rtn)


def label(choice: Choice) -> str:
    """A choice in a few words: `gptq affine 4 bits g32`."""
    if not choice.bits:
        return "float16"
    group = f" g{choice.group_size}" if choice.group_size else ""
    extras = f" vectors of {choice.vector}" * (choice.vector > 1) + " channel scales" * choice.channel_scale
    return f"{choice.method.value} {choice.format.value} {choice.bits} bits{group}{extras}"


def takes(device: DeviceProfile, choice: Choice, shape: tuple[int, ...]) -> bool:
    """Whether the device's runtime holds such a weight, and its chip is not known to run it slowly or wrongly.

    On the Neural Engine integer weights with a scale for each block gave wrong numbers (apple/coreai-models#279) and
    palettes with channel scales crashed (apple/coremltools#2688); ONNX Runtime has blocks of 16 and more.
    """
    if any(need not in device.weight_formats for need in choice.needs()):
        return False
    columns = math.prod(shape[1:])
    in_blocks = bool(choice.bits) and choice.format is Format.affine and choice.group_size < columns
    if device.runtime is Runtime.onnxruntime:
        return not in_blocks or block_size(columns, choice.group_size) is not None
    return NEURAL_ENGINE not in device.compute_units or not (in_blocks or choice.channel_scale)
