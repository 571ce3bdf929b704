"""Which method, format and bits each weight gets: what the configuration says, and where a weight cannot follow it.

Light, since the plan asks it too: no torch here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase

from pipelines.errors import ConfigError, StageError, nearest
from stages.schema import Format, Importance, LayerOverride, Method, QuantizeConfig

AFFINE_BITS, PALETTE_BITS = (2, 3, 4, 6, 8), (1, 2, 3, 4, 6, 8)


class Role(Enum):
    """Where a weight stands, as far as the configuration tells weights apart."""

    language = "language"
    embeddings = "embeddings"
    tower = "tower"


@dataclass(frozen=True)
class Choice:
    """What one weight becomes; bits 0: it stays float16. `reason`: why that is not what the configuration says."""

    method: Method
    format: Format
    bits: int
    group_size: int
    symmetric: bool
    reason: str = ""


def choices(config: QuantizeConfig, weights: Mapping[str, tuple[Role, tuple[int, ...]]]) -> dict[str, Choice]:
    """The choice for each weight, given its role and shape, (out, in) or (out, in, 1, 1).

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
        result[name] = _fitted(_checked(_overridden(_of_role(config, role), fitting), name), shape)
    return result


def check_choices(config: QuantizeConfig) -> list[Choice]:
    """Every choice that the configuration can lead to. Raises ConfigError for one that no weight can follow."""
    found = [_checked(_of_role(config, role), role.value) for role in Role]
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
    if config.damping <= 0:
        raise ConfigError(f"quantize.damping is {config.damping}", hint="Expected a number above 0; 0.01 is usual.")
    return found


def uses_statistics(config: QuantizeConfig) -> bool:
    """Whether any weight's codes depend on a calibration."""
    searches = config.scale_search
    return any(
        choice.bits
        and (
            choice.method is Method.gptq
            or (choice.format is Format.palette and config.importance is not Importance.uniform)
            or (searches and choice.bits < 8)
        )
        for choice in check_choices(config)
    )


def _of_role(config: QuantizeConfig, role: Role) -> Choice:
    usual = Choice(config.method, config.format, config.bits, config.group_size, config.symmetric)
    if role is Role.language:
        return usual
    bits = config.embeddings if role is Role.embeddings else config.convolutions
    if bits in (0, 8):
        return Choice(Method.rtn, Format.affine, bits, 0, True)
    choice = replace(usual, bits=bits)
    if role is Role.embeddings and choice.method is Method.gptq:  # a lookup has no second moment to compensate by
        return replace(choice, method=Method.kmeans if choice.format is Format.palette else Method.rtn)
    return choice


def _overridden(choice: Choice, overrides: list[LayerOverride]) -> Choice:
    for override in overrides:
        said = {
            key: value
            for key in ("method", "format", "bits", "group_size", "symmetric")
            if (value := getattr(override, key)) is not None
        }
        choice = replace(choice, **said)
    return choice


def _checked(choice: Choice, where: str) -> Choice:
    if not choice.bits:
        return choice
    allowed = PALETTE_BITS if choice.format is Format.palette else AFFINE_BITS
    if choice.bits not in allowed:
        raise ConfigError(
            f"quantize ({where}): {choice.bits} bits of {choice.format.value}",
            hint=f"Expected one of {', '.join(map(str, allowed))}, or 0 for float16.",
        )
    wrong = {(Method.kmeans, Format.affine), (Method.rtn, Format.palette)}
    if (choice.method, choice.format) in wrong:
        fitting = (
            "kmeans, or gptq (with a calibration)"
            if choice.format is Format.palette
            else "rtn, or gptq (with a calibration)"
        )
        raise ConfigError(
            f"quantize ({where}): method {choice.method.value} does not make format {choice.format.value}",
            hint=f"For {choice.format.value} set quantize.method={fitting}.",
        )
    if choice.group_size < 0:
        raise ConfigError(f"quantize ({where}): group_size is {choice.group_size}", hint="Expected 0 or more.")
    return choice


def _fitted(choice: Choice, shape: tuple[int, ...]) -> Choice:
    """The choice with group_size in rows or columns of this weight, or what takes its place if it does not divide."""
    if not choice.bits:
        return choice
    rows, columns = shape[0], math.prod(shape[1:])
    if choice.format is Format.palette:
        size = math.gcd(rows, choice.group_size) if choice.group_size else rows
        if choice.group_size and 2 * size < min(choice.group_size, rows):
            return replace(choice, group_size=rows, reason=f"{choice.group_size} rows do not divide {rows}")
        return replace(choice, group_size=size)
    size = choice.group_size or columns
    if columns % size:
        reason = f"{columns} columns are no multiple of {size}: 8 bits, one scale a row"
        return Choice(Method.rtn, Format.affine, 8, columns, choice.symmetric, reason)
    return replace(choice, group_size=size)
