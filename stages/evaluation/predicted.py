"""What is predicted of a model on its device, from the weights as they are stored and the profile's hardware."""

from typing import Any

from stages.artifacts import QuantizedModel
from stages.devices.hardware import predictable
from stages.devices.roofline import TEXT_TOKENS, Roofline
from stages.schema import DeviceProfile


def predicted(model: QuantizedModel, description: dict[str, Any], device: DeviceProfile) -> dict[str, float]:
    """{"token_ms", "first_token_ms", "encode_ms"}, in milliseconds, at the end of the context that model.json
    (description) tells of, for a prompt of TEXT_TOKENS beside the image, or of as many as the context has room for.

    Empty where the device's speed is not known, and for a user's module.
    """
    config = model.config()
    if config.text is None or not predictable(device.hardware):
        return {}
    context = int(description["context"])
    room = context - (config.vision.tokens if config.vision else 0)
    if room < 1:
        return {}
    store = model.store()
    sizes = {name: store.format(name).bytes for name in store.names()}
    latency = Roofline(device, context=context, text_tokens=min(TEXT_TOKENS, room)).predict(config, sizes)
    return {
        "token_ms": latency.token_ms,
        "first_token_ms": latency.first_token_ms,
        "encode_ms": latency.encode_ms,
    }
