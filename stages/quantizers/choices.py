"""Which method, format and bits each weight gets: what the configuration says, and where a weight cannot follow it.

Light, since the plan asks it too: no torch here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from pipelines.errors import ConfigError, StageError, nearest
from stages.lowering.limits import SMALLEST_BLOCK
from stages.schema import Format, Importance, LayerOverride, Method, QuantizeConfig

AFFINE_BITS, PALETTE_BITS = (2, 3, 4, 6, 8), (1, 2, 3, 4, 6, 8)
_AFFINE_METHODS = (Method.rtn, Method.gptq, Method.hqq, Method.awq, Method.nncf)
_PALETTE_METHODS = (Method.kmeans, Method.gptq)
_VECTORS = (1, 2, 4, 8)


class Role(Enum):
    """Where a weight stands, as far as the configuration tells weights apart. spatial: a convolution that is no matrix
    product at each pixel; it and the table of embeddings have no second moment."""

    language = "language"
    head = "head"
    embeddings = "embeddings"
    tower = "tower"
    spatial = "spatial"


@dataclass(frozen=True)
class Choice:
    """What one weight becomes; bits 0: it stays float16. `reason`: why that is not what the configuration says."""

    method: Method
    format: Format
    bits: int
    group_size: int
    symmetric: bool
    channel_scale: bool = False
    vector: int = 1
    sparsity: float = 0.0
    sparsity_pattern: str | None = None
    reason: str = ""

    @property
    def sparse(self) -> bool:
        return self.sparsity > 0 or self.sparsity_pattern is not None

    def needs(self) -> tuple[str, ...]:
        """What a device must be able to hold, in the words of its profile's weight_formats."""
        extras = {
            "palette-vectors": self.vector > 1,
            "palette-channel-scales": self.channel_scale,
            "sparse": self.sparse,
        }
        return (weight_format(self.format.value, self.bits), *(name for name, needed in extras.items() if needed))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "method": self.method.value, "format": self.format.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Choice":
        return cls(**{**values, "method": Method(values["method"]), "format": Format(values["format"])})


def weight_format(kind: str, bits: int) -> str:
    """The name that device profiles use: float16, affine-int4, palette-4."""
    if not bits:
        return "float16"
    return f"palette-{bits}" if kind == "palette" else f"affine-int{bits}"


def choices(
    config: QuantizeConfig,
    weights: Mapping[str, tuple[Role, tuple[int, ...]]],
    allocated: Mapping[str, Choice] | None = None,
) -> dict[str, Choice]:
    """The choice for each weight, given its role and shape, (out, in) or (out, in, height, width). allocated: what was
    chosen by measurement, where allocates(config); an override comes before it.

    Raises ConfigError for an impossible combination, and StageError for an override that fits no weight.
    """
    check_choices(config)
    for override in config.overrides:
        if not any(fnmatchcase(name, override.pattern) for name in weights):
            raise StageError(
                f"quantize.overrides: no quantizable weight fits '{override.pattern}'",
                hint=nearest(override.pattern, weights) or f"Weights are named like {next(iter(sorted(weights)), '')}.",
            )
    result = {}
    for name, (role, shape) in weights.items():
        fitting = [override for override in config.overrides if fnmatchcase(name, override.pattern)]
        usual = _of_role(config, role) if allocated is None else allocated[name]
        result[name] = _fitted(_checked(_overridden(usual, fitting), name), shape)
    return result


def check_choices(config: QuantizeConfig) -> list[Choice]:
    """Every choice that the configuration can lead to, the roles' own first; of an automatic choice only those of its
    overrides. Raises ConfigError for one that no weight can follow."""
    _check_settings(config)
    found = [] if allocates(config) else [_checked(_of_role(config, role), role.value) for role in Role]
    for override in config.overrides:
        possible, refused = [], []
        for role in Role:
            try:
                possible.append(_checked(_overridden(_of_role(config, role), [override]), override.pattern))
            except ConfigError as error:
                refused.append(error)
        if not possible:
            raise refused[0]
        found += possible
    return found


def allocates(config: QuantizeConfig) -> bool:
    """Whether formats and bits are chosen for each weight by measurement, under a budget."""
    bounds = (config.budget.bits, config.budget.bytes, config.budget.kl)
    return config.method is Method.auto or (config.method is Method.qat and any(bound is not None for bound in bounds))


def uses_statistics(config: QuantizeConfig) -> bool:
    """Whether any weight's codes depend on a calibration."""
    if allocates(config) or config.activations:
        return True
    choices_made = [choice for choice in check_choices(config) if choice.bits or choice.sparse]
    return any(
        choice.method in (Method.gptq, Method.awq)
        or choice.sparse
        or (choice.format is Format.palette and config.importance is not Importance.uniform)
        or (config.scale_search and choice.bits < 8)
        for choice in choices_made
    )


def _check_settings(config: QuantizeConfig) -> None:
    """What holds for the whole model."""
    if config.damping <= 0:
        raise ConfigError(f"quantize.damping is {config.damping}", hint="Expected a number above 0; 0.01 is usual.")
    if config.refinement < 0:
        raise ConfigError(f"quantize.refinement is {config.refinement}", hint="Expected 0 or more passes; 4 is usual.")
    bounds = {item.name: getattr(config.budget, item.name) for item in fields(config.budget)}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if config.method is Method.auto and not given:
        raise ConfigError(
            "quantize.method is auto, and quantize.budget bounds nothing",
            hint="Set quantize.budget.bits=3.0 (the average of all parameters), quantize.budget.bytes or .kl.",
        )
    if given and not allocates(config):
        raise ConfigError(
            f"quantize.budget.{next(iter(given))} is for the methods auto and qat; the method is {config.method.value}",
            hint="Choose quantize=auto.",
        )
    for name, bound in given.items():
        if bound <= 0:
            raise ConfigError(f"quantize.budget.{name} is {bound}", hint="Expected a number above 0, or null.")
    if (config.method is Method.qat) != (config.training is not None):
        raise ConfigError(
            "quantize.training is what method qat trains by; "
            + ("it is null" if config.training is None else f"the method is {config.method.value}"),
            hint="Choose quantize=qat2, quantize=qat1, or your own file with both.",
        )
    if config.activations not in (0, 8):
        raise ConfigError(f"quantize.activations is {config.activations}", hint="Expected 0 or 8.")
    if config.activations and config.method is not Method.nncf:
        raise ConfigError(
            f"quantize.activations is of method nncf; the method is {config.method.value}",
            hint="Choose quantize=nncf-static.",
        )


def _of_role(config: QuantizeConfig, role: Role) -> Choice:
    usual = Choice(
        Method.gptq if config.method in (Method.qat, Method.auto) else config.method,
        config.format,
        config.bits,
        config.group_size,
        config.symmetric,
        config.channel_scale,
        config.vector,
        config.sparsity,
        config.sparsity_pattern,
    )
    said = {
        Role.language: None,
        Role.head: config.head,
        Role.embeddings: config.embeddings,
        Role.tower: config.convolutions,
        Role.spatial: config.spatial,
    }[role]
    bits = config.bits if said is None else said
    if role is Role.language or (role is Role.head and config.head is None):
        return usual
    if role is Role.spatial or bits in (0, 8):
        return Choice(Method.rtn, Format.affine, bits, 0, True)
    choice = replace(usual, bits=bits)
    if role is Role.embeddings:  # a lookup has no second moment to compensate by
        method = Method.kmeans if choice.format is Format.palette else Method.rtn
        keeps = choice.method in (Method.hqq, Method.nncf)
        choice = replace(choice, method=choice.method if keeps else method, sparsity=0.0, sparsity_pattern=None)
    return choice


def _overridden(choice: Choice, overrides: list[LayerOverride]) -> Choice:
    for override in overrides:
        said = {
            item.name: value
            for item in fields(override)
            if item.name != "pattern" and (value := getattr(override, item.name)) is not None
        }
        choice = replace(choice, **said)
    return choice


def _checked(choice: Choice, where: str) -> Choice:
    if choice.sparse:
        _check_sparsity(choice, where)
    if not choice.bits:  # float16 has no palette
        return replace(choice, channel_scale=False, vector=1)
    allowed = PALETTE_BITS if choice.format is Format.palette else AFFINE_BITS
    if choice.bits not in allowed:
        raise ConfigError(
            f"quantize ({where}): {choice.bits} bits of {choice.format.value}",
            hint=f"Expected one of {', '.join(map(str, allowed))}, or 0 for float16.",
        )
    makes = {Format.affine: _AFFINE_METHODS, Format.palette: _PALETTE_METHODS}[choice.format]
    if choice.method not in makes:
        raise ConfigError(
            f"quantize ({where}): method {choice.method.value} does not make format {choice.format.value}",
            hint=f"For {choice.format.value} set quantize.method to one of: "
            f"{', '.join(method.value for method in makes)}. gptq and awq need a calibration.",
        )
    if choice.method is Method.nncf and (choice.bits not in (4, 8) or (choice.bits == 8 and choice.group_size)):
        raise ConfigError(
            f"quantize ({where}): NNCF makes no {choice.bits} bits"
            + (f" in groups of {choice.group_size}" if choice.group_size else ""),
            hint="It makes 4 bits in groups of any size, and 8 with one scale a row (group_size=0).",
        )
    for name, value, usual in (("vector", choice.vector, 1), ("channel_scale", choice.channel_scale, False)):
        if choice.format is Format.affine and value != usual:
            raise ConfigError(
                f"quantize ({where}): {name} is {value}, which palettes have and affine weights do not",
                hint="Set quantize.format=palette with method kmeans or gptq.",
            )
    if choice.vector not in _VECTORS:
        raise ConfigError(f"quantize ({where}): vector is {choice.vector}", hint="Expected 1, 2, 4 or 8.")
    if choice.vector > 1 and (choice.channel_scale or choice.sparse):
        raise ConfigError(
            f"quantize ({where}): vector palettes have neither channel scales nor zeros of their own",
            hint="Set quantize.vector=1, or quantize.channel_scale=false and quantize.sparsity=0.",
        )
    if choice.group_size < 0:
        raise ConfigError(f"quantize ({where}): group_size is {choice.group_size}", hint="Expected 0 or more.")
    return choice


def _check_sparsity(choice: Choice, where: str) -> None:
    if not 0 <= choice.sparsity < 1:
        raise ConfigError(
            f"quantize ({where}): sparsity is {choice.sparsity}", hint="Expected a share of zeros, from 0 to below 1."
        )
    if choice.sparsity_pattern is None:
        return
    if choice.sparsity:
        raise ConfigError(
            f"quantize ({where}): sparsity {choice.sparsity} and sparsity_pattern {choice.sparsity_pattern} exclude "
            "each other",
            hint="A pattern says itself how many weights stay: set quantize.sparsity=0.",
        )
    kept_of(choice.sparsity_pattern)


def kept_of(pattern: str) -> tuple[int, int]:
    """(2, 4) of "2:4". Raises ConfigError for what is no pattern."""
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    kept, size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < kept < size:
        raise ConfigError(
            f"quantize.sparsity_pattern is '{pattern}'", hint='Expected "n:m", n of m weights kept, such as "2:4".'
        )
    return kept, size


def _fitted(choice: Choice, shape: tuple[int, ...]) -> Choice:
    """The choice with group_size in rows or columns of this weight, or what takes its place if it does not divide."""
    if not choice.bits:
        return choice
    rows, columns = shape[0], math.prod(shape[1:])
    if choice.vector > 1 and rows % choice.vector:
        return replace(choice, vector=1, reason=f"{rows} rows are no multiple of {choice.vector}: single values")
    if choice.format is Format.palette:
        size = math.gcd(rows, choice.group_size) if choice.group_size else rows
        size = size if size % choice.vector == 0 else rows
        if choice.group_size and 2 * size < min(choice.group_size, rows):
            return replace(choice, group_size=rows, reason=f"{choice.group_size} rows do not divide {rows}")
        return replace(choice, group_size=size)
    size = choice.group_size or columns
    if columns % size == 0:
        return replace(choice, group_size=size)
    shared = math.gcd(columns, size)
    shared = shared if shared >= SMALLEST_BLOCK and size < columns else columns
    return replace(choice, group_size=shared, reason=f"groups of {size} do not divide {columns} columns")
