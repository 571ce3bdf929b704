"""What can be refused before anything runs. Called at plan time, so only light imports."""

from __future__ import annotations

from pipelines.errors import ConfigError
from stages.quantizers.choices import check_choices
from stages.schema import DeviceProfile, QuantizeConfig


def weight_formats(config: QuantizeConfig, device: DeviceProfile) -> None:
    """Raise ConfigError where `device`'s runtime cannot hold the weights that `config` asks for, or nobody can."""
    wanted = {weight_format(choice.format.value, choice.bits) for choice in check_choices(config)}
    for name in sorted(wanted):
        if name not in device.weight_formats:
            raise ConfigError(
                f"quantize: {device.name} ({device.runtime.value}) cannot hold {name} weights; "
                f"it can hold {', '.join(device.weight_formats)}",
                hint="choose another conf/quantize, or override it for this device: "
                f"'+device.{device.name}.overrides.quantize.format=affine'",
            )


def weight_format(kind: str, bits: int) -> str:
    """Return the name that profiles use: float16, affine-int4, palette-4."""
    if bits == 0:
        return "float16"
    return f"palette-{bits}" if kind == "palette" else f"affine-int{bits}"
