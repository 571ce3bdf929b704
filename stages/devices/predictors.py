"""How long a model takes on a device that is not here: an interface, and a roofline, which needs no measurement.

    predictor = predictor_of(LatencySource.roofline, device, context=256)
    latency = predictor.predict(config, stored_bytes(config, quantize))
    print(latency.token_ms, latency.first_token_ms)

A prediction tells which of two models is faster, and about by how much; it is no measurement, and is called predicted
wherever it is shown.
"""

from stages.devices.latency import Latency, Predictor
from stages.devices.roofline import TEXT_TOKENS, Roofline
from stages.schema import DeviceProfile
from stages.schema.search import LatencySource

__all__ = ["Latency", "Predictor", "Roofline", "predictor_of"]


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
    return Roofline(device, context=context, text_tokens=text_tokens)
