"""How long a model takes, and the interface of what tells it: a prediction for a device, or a measurement here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from stages.models.vlm import ModelConfig


@dataclass(frozen=True)
class Latency:
    """In milliseconds: encode_ms, of one image (0: no tower); prefill_ms, of the prompt with it; token_ms, of each
    further token."""

    encode_ms: float
    prefill_ms: float
    token_ms: float

    @property
    def first_token_ms(self) -> float:
        """From an image to the first token of the answer."""
        return self.encode_ms + self.prefill_ms


class Predictor(Protocol):
    """What predicts or measures latencies."""

    def predict(self, model: ModelConfig, sizes: Mapping[str, int]) -> Latency:
        """sizes: the stored bytes of each weight, by name; of what is missing, float32. Raises StageError for a user's
        module, which neither encodes nor decodes."""
        ...
