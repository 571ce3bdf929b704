"""What is predicted of a model on a device that is not here: times, memory, energy, speed after minutes of use.

    prediction = prediction_of(config, sizes, device, context=1024, text_tokens=16)
    print(prediction.metrics["token_ms"].value, prediction.by_context[512].low, prediction.basis["decode"])

A prediction is no measurement, and is called predicted wherever it is shown. How far predictions are off, on models and
on chips that were held out of public measurements, `python benchmarks/predictors.py` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stages.devices.calibration import Estimate
from stages.devices.hardware import predictable
from stages.devices.memory import basis_of_memory, peak_memory
from stages.devices.thermal import MINUTES, heat_of
from stages.devices.times import Timer
from stages.devices.work import as_loaded
from stages.models.vlm import ModelConfig
from stages.schema import DeviceProfile, Unpacking

TEXT_TOKENS = 16  # of a prompt beside its image
ANSWER_TOKENS = 16  # of the answer whose energy is told
CONTEXTS = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Prediction:
    """metrics: peak_memory_mib; where enough is known of the device's speed, encode_ms (where there is a tower),
    prefill_ms, first_token_ms, token_ms and tokens_per_s at the end of the context; where its power or its heat is
    known too, energy_j of an image and an answer of ANSWER_TOKENS, tokens_per_s_1min, _5min, _15min. by_context: tokens
    a second. basis: on what each rests, a sentence."""

    metrics: Mapping[str, Estimate]
    by_context: Mapping[int, Estimate]
    basis: Mapping[str, str]

    def to_json(self) -> dict[str, dict[str, float | bool]]:
        """{metric: {"value", "low", "high"}}, with {"judged": true} where the interval is a judgement."""
        return {name: estimate.to_json() for name, estimate in self.metrics.items()}


def prediction_of(
    config: ModelConfig, sizes: Mapping[str, int], device: DeviceProfile, *, context: int, text_tokens: int
) -> Prediction | None:
    """sizes: the stored bytes of each weight, by name. context: rows of the cache; text_tokens: of the prompt beside
    its image. None for a user's module."""
    if config.text is None:
        return None
    sizes = as_loaded(config, sizes) if device.unpack_weights is Unpacking.folded else sizes
    memory = peak_memory(config, sizes, device, context=context, text_tokens=text_tokens)
    speed = _speed(config, sizes, device, context, text_tokens) if predictable(device) else Prediction({}, {}, {})
    metrics = {**speed.metrics, "peak_memory_mib": memory}
    return Prediction(metrics, speed.by_context, {**speed.basis, "memory": basis_of_memory(device)})


def _speed(
    config: ModelConfig, sizes: Mapping[str, int], device: DeviceProfile, context: int, text_tokens: int
) -> Prediction:
    timer, heat = Timer(device), heat_of(device.thermal)
    prompt = text_tokens + (config.vision.tokens if config.vision else 0)
    contexts = (*(each for each in CONTEXTS if prompt <= each < context), context)
    times = timer.times(config, sizes, contexts=contexts, text_tokens=text_tokens)
    token = times.tokens[context]
    first = times.encode.plus(times.prefill) if times.encode else times.prefill
    metrics = {"encode_ms": times.encode} if times.encode else {}
    metrics |= {
        "prefill_ms": times.prefill,
        "first_token_ms": first,
        "token_ms": token,
        "tokens_per_s": token.inverse().times(1e3),
    }
    basis = timer.basis()
    if device.thermal.peak_w is not None:
        answer = first.plus(token.times(ANSWER_TOKENS - 1))
        metrics["energy_j"] = replace(answer.times(device.thermal.peak_w / 1e3), judged=True)
        basis["energy"] = "the time that it takes, at the device's full power throughout; the interval is the time's"
    if heat:
        for minute in MINUTES:
            metrics[f"tokens_per_s_{minute}min"] = metrics["tokens_per_s"].by(heat.speeds[minute])
        basis["sustained"] = heat.basis
    if not config.vision:
        del basis["encode"]
    return Prediction(metrics, {each: found.inverse().times(1e3) for each, found in times.tokens.items()}, basis)


def to_metrics(prediction: Prediction | None) -> dict[str, Any]:
    """As metrics.json has it: {"predicted", "by_context", "basis"}; empty where nothing is predicted."""
    if prediction is None:
        return {}
    return {
        "predicted": prediction.to_json(),
        "by_context": {str(context): estimate.to_json() for context, estimate in prediction.by_context.items()},
        "basis": dict(prediction.basis),
    }
