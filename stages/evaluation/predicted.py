"""What is predicted of a model on its device, from the weights as they are stored and the profile's hardware."""

from typing import Any

from stages.artifacts import QuantizedModel
from stages.devices.predictors import TEXT_TOKENS, prediction_of, to_metrics
from stages.schema import DeviceProfile


def predicted(model: QuantizedModel, description: dict[str, Any], device: DeviceProfile) -> dict[str, Any]:
    """{"predicted": {metric: {"value", "low", "high"}}, "by_context": {tokens: the same, of tokens a second}, "basis":
    {what: a sentence}}, at the context that model.json (description) tells of, for a prompt of TEXT_TOKENS beside the
    image, or of as many as the context has room for.

    Memory alone of a device whose speed is not known; empty for a user's module.
    """
    config = model.config()
    if config.text is None:
        return {}
    context = int(description["context"])
    room = context - (config.vision.tokens if config.vision else 0)
    if room < 1:
        return {}
    store = model.store()
    sizes = {name: store.format(name).bytes for name in store.names()}
    return to_metrics(prediction_of(config, sizes, device, context=context, text_tokens=min(TEXT_TOKENS, room)))
