"""Latencies for a search, of whichever kind it asks for: predicted, or measured here.

predictor = predictor_of(LatencySource.predicted, device, context=256)
print(predictor.predict(config, stored_bytes(config, quantize)).token_ms)
"""

from collections.abc import Mapping

from stages.devices.hardware import check_predictable
from stages.devices.latency import Latency, Predictor
from stages.devices.predictors import TEXT_TOKENS
from stages.devices.times import Timer
from stages.models.vlm import ModelConfig
from stages.schema import DeviceProfile
from stages.schema.search import LatencySource


class Predicted:
    """The middle of what is predicted, for searches."""

    def __init__(self, device: DeviceProfile, *, context: int, text_tokens: int):
        """Raises ConfigError where the device's speed is not known."""
        check_predictable(device)
        self._timer, self._context, self._text_tokens = Timer(device), context, text_tokens

    def predict(self, model: ModelConfig, sizes: Mapping[str, int]) -> Latency:
        times = self._timer.times(model, sizes, contexts=(self._context,), text_tokens=self._text_tokens)
        encode = times.encode.value if times.encode else 0.0
        return Latency(encode, times.prefill.value, times.tokens[self._context].value)


def predictor_of(
    kind: LatencySource, device: DeviceProfile, *, context: int, text_tokens: int = TEXT_TOKENS
) -> Predictor | None:
    """The predictor of that kind; None for none. context: rows of the cache, all of them in use when token_ms is
    counted; text_tokens: of a prompt beside its image. Raises as check_predictable does."""
    if kind is LatencySource.none:
        return None
    if kind is LatencySource.host:
        from stages.devices.host import Host

        return Host(context=context, text_tokens=text_tokens)
    return Predicted(device, context=context, text_tokens=text_tokens)
