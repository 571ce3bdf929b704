"""Whether a device's latency can be predicted: what is known of its hardware. Light, since the plan asks it too."""

from dataclasses import asdict

from pipelines.errors import ConfigError
from stages.schema import DeviceProfile, Hardware

_NEEDED = ("bandwidth_gb_s", "gflops")


def predictable(hardware: Hardware) -> bool:
    """Whether the roofline has what it needs."""
    return not _missing(hardware)


def check_predictable(device: DeviceProfile) -> None:
    """Raise ConfigError where a roofline of the device cannot be drawn, naming what is not known of it, and where what
    is said of it is no speed."""
    for name, value in asdict(device.hardware).items():
        if value is not None and not (value > 0 or (name == "operator_us" and value == 0)):
            raise ConfigError(
                f"device {device.name}: hardware.{name} is {value}", hint="expected a number above 0, or null"
            )
    if missing := _missing(device.hardware):
        names = " and ".join(f"hardware.{name}" for name in missing)
        raise ConfigError(
            f"device {device.name}: no latency can be predicted without {names}; found null, which is: not known",
            hint=f"set device.{device.name}.hardware.{missing[0]}=NUMBER, as the maker has it; or search.latency=none, "
            "and budgets of latency null",
        )


def _missing(hardware: Hardware) -> list[str]:
    return [name for name in _NEEDED if getattr(hardware, name) is None]
