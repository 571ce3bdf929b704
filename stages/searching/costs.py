"""What an architecture costs on each device: the bytes of its artifact, and how long an answer takes."""

import json
from collections.abc import Mapping
from statistics import fmean

from stages.devices.bytes import artifact_bytes, stored_bytes
from stages.devices.latency import Latency, Predictor
from stages.devices.latency_sources import predictor_of
from stages.devices.operators import parameter_sizes
from stages.elastic.space import Architecture, Space
from stages.models.vlm import ModelConfig
from stages.schema import DeviceProfile
from stages.schema.search import SearchConfig
from stages.searching.trials import Cost


class Costs:
    """Prices architectures, each once. tokenizer_bytes: of the model's tokenizer.json."""

    def __init__(self, space: Space, config: SearchConfig, devices: Mapping[str, DeviceProfile], tokenizer_bytes: int):
        """Raises ConfigError for a device whose latency is asked for and cannot be predicted."""
        self._space, self._config, self._devices, self._tokenizer = space, config, devices, tokenizer_bytes
        self._predictors: dict[str, Predictor | None] = {
            name: predictor_of(config.latency, device, context=config.context, text_tokens=config.text_tokens)
            for name, device in devices.items()
        }
        self._known: dict[str, Cost] = {}
        self._full = self._measured(space.configured(space.largest))
        self.full = self._shared(self._full)

    def of(self, architecture: Architecture) -> Cost:
        mark = json.dumps(architecture, sort_keys=True)
        if mark not in self._known:
            self._known[mark] = self._shared(self._measured(self._space.configured(architecture)))
        return self._known[mark]

    def _measured(self, model: ModelConfig) -> Cost:
        config = self._config
        stored = stored_bytes(model, config.quantize)
        sizes, latency = {}, {}
        for name, device in self._devices.items():
            sizes[name] = artifact_bytes(
                model, config.quantize, device, context=config.context, tokenizer_bytes=self._tokenizer
            )
            if (predictor := self._predictors[name]) is not None:
                latency[name] = _latency(predictor.predict(model, stored), config.answer_tokens)
        return Cost(sum(parameter_sizes(model).values()), sizes, latency, 1.0, 1.0)

    def _shared(self, cost: Cost) -> Cost:
        """With the shares of what the full model takes."""
        size = fmean(cost.bytes[name] / full for name, full in self._full.bytes.items())
        times = [cost.latency[name]["answer_ms"] / full["answer_ms"] for name, full in self._full.latency.items()]
        return Cost(cost.parameters, cost.bytes, cost.latency, size, fmean(times) if times else size)


def _latency(found: Latency, answer_tokens: int) -> dict[str, float]:
    answer = found.first_token_ms + (answer_tokens - 1) * found.token_ms
    return {
        "encode_ms": found.encode_ms,
        "first_token_ms": found.first_token_ms,
        "token_ms": found.token_ms,
        "answer_ms": answer,
    }
