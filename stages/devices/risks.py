"""What may go wrong or be slow on one device, though nothing has run there: what static rules and its profile say."""

from collections.abc import Mapping
from typing import Any

from stages.artifacts import QuantizedModel
from stages.devices.chips import on_chip
from stages.quantizers.choices import weight_format
from stages.schema import DeviceProfile


def risks_of(description: Mapping[str, Any], model: QuantizedModel, device: DeviceProfile) -> list[dict[str, Any]]:
    """As neural_engine.Finding.to_dict gives them: those of model.json (description), as they are for the device's
    chip, and weights in formats that the device's profile does not call fast."""
    return [*on_chip(description.get("risks", []), device.chip), *_slow_formats(model, device)]


def _slow_formats(model: QuantizedModel, device: DeviceProfile) -> list[dict[str, Any]]:
    found: dict[str, list[tuple[str, int]]] = {}
    store = model.store()
    for name in store.names():
        form = store.format(name)
        label = weight_format(form.format, form.bits)
        if form.bits and label not in device.fast_formats:
            found.setdefault(label, []).append((name, form.bytes))
    return [
        {
            "rule": "slow-format",
            "risk": f"{sum(size for _, size in weights) / 2**20:.2f} MiB of weights are {label}, "
            f"which is not known to be fast on {device.title}",
            "source": "the device's profile: fast_formats",
            "package": "",
            "function": "",
            "operation": weights[0][0],
            "operator": label,
            "line": "",
            "count": len(weights),
        }
        for label, weights in sorted(found.items())
    ]
