"""What calibration measures of each layer: second moments and ranges of its input, Fisher information of its weight.

Second moments drive GPTQ (arXiv:2210.17323), the Fisher information weighs palettes (SqueezeLLM, arXiv:2306.07629) and
ranks layers: 1/2 sum F (w - q)^2 is the second-order estimate of the answers' KL divergence, in nats a token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.errors import StageError
from stages.artifacts import Checkpoint
from stages.models.vlm import VisionLanguageModel
from stages.quantizers.choices import Role
from stages.quantizers.examples import Batch, Example, answer_loss, batch_of, forward
from stages.quantizers.layers import Layer, is_matrix, quantizable_layers
from stages.quantizers.rtn import round_to_nearest
from stages.schema import CalibrateConfig
from stages.tensorfile import TensorReader, TensorWriter

SENSITIVITY_BITS, SENSITIVITY_GROUP = 4, 32
HEAD, LOGITS = "text.lm_head.weight", "text.lm_head"
Report = Callable[[float, float, str], None]


@dataclass
class Statistics:
    """By weight name. second_moments: float32 (in, in); ranges: least and greatest input; fisher: the weight's shape.

    activations, by module name: the largest absolute output, for the check against float16's range.
    """

    second_moments: dict[str, torch.Tensor] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    fisher: dict[str, torch.Tensor] = field(default_factory=dict)
    activations: dict[str, float] = field(default_factory=dict)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order whatever the machine's threads, so that results are the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure(
    checkpoint: Checkpoint, examples: Sequence[Example], config: CalibrateConfig, progress: Report
) -> Statistics:
    """Run the float32 model over the examples, forward in batches, then backward one by one.

    Raises StageError for no examples, and for activations or gradients that are not finite, naming the layer.
    """
    if not examples:
        raise StageError("the calibration set is empty", hint="Set calibrate.samples to 1 or more; 128 is usual.")
    model = checkpoint.model()
    layers = quantizable_layers(model)
    statistics = Statistics()
    with torch.no_grad():
        _measure_forward(model, layers, checkpoint, examples, config, statistics, progress)
    _measure_fisher(model, layers, checkpoint, examples, statistics, progress)
    return statistics


def sensitivity(checkpoint: Checkpoint, statistics: Statistics) -> dict[str, float]:
    """By weight name, the Fisher-weighted error of rounding it to 4 bits in groups of 32, in nats a token."""
    scores = {}
    with checkpoint.tensors() as tensors:
        for name, fisher in statistics.fisher.items():
            weight = tensors[name].float().flatten(1)
            size = SENSITIVITY_GROUP if weight.shape[1] % SENSITIVITY_GROUP == 0 else weight.shape[1]
            error = weight - round_to_nearest(weight, SENSITIVITY_BITS, size, symmetric=False).dense()
            scores[name] = float(0.5 * (fisher.flatten(1).double() * error.double().square()).sum())
    return scores


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics.safetensors, as Calibration describes it."""
    with TensorWriter(path) as writer:
        for name, moment in statistics.second_moments.items():
            writer.add(f"{name}.second_moment", moment.numpy())
            writer.add(f"{name}.range", np.array(statistics.ranges[name], np.float32))
        for name, fisher in statistics.fisher.items():
            writer.add(f"{name}.fisher", fisher.numpy())


class StatisticsReader:
    """statistics.safetensors, mapped; each tensor is read when asked for. path None: there are none."""

    def __init__(self, path: Path | None):
        self._reader = TensorReader(path) if path else None

    def second_moment(self, name: str) -> torch.Tensor:
        """float32 (in, in). Raises StoreError where calibration did not see the layer."""
        return self._tensor(f"{name}.second_moment")

    def fisher(self, name: str) -> torch.Tensor:
        """float32, in the weight's shape. Raises StoreError where calibration did not see the layer."""
        return self._tensor(f"{name}.fisher")

    def _tensor(self, name: str) -> torch.Tensor:
        if self._reader is None:
            raise StageError(f"{name} is needed, and there is no calibration", hint="Run calibrate before quantize.")
        array: NDArray[Any] = np.array(self._reader.array(name))
        return torch.from_numpy(array)


class _Moments:
    """Sums of one layer's inputs. `weights`: of the current batch's tokens (B, N), for layers of the language model."""

    def __init__(self, columns: int):
        self.total, self.mass = torch.zeros(columns, columns, dtype=torch.float64), 0.0
        self.low, self.high = float("inf"), float("-inf")

    def add(self, inputs: torch.Tensor, weights: torch.Tensor | None) -> None:
        """inputs: (tokens, in); weights: (tokens,), 0 where padded."""
        if weights is not None:
            inputs, weights = inputs[weights > 0], weights[weights > 0]
        weighted = inputs if weights is None else inputs * weights.unsqueeze(1)
        self.total += (weighted.T @ inputs).double()
        self.mass += float(len(inputs) if weights is None else weights.sum())
        self.low, self.high = min(self.low, float(inputs.min())), max(self.high, float(inputs.max()))

    def mean(self) -> torch.Tensor:
        moment = (self.total / self.mass).float()
        return ((moment + moment.T) / 2).contiguous()


def _measure_forward(
    model: VisionLanguageModel,
    layers: dict[str, Layer],
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    config: CalibrateConfig,
    statistics: Statistics,
    progress: Report,
) -> None:
    moments = {name: _Moments(layer.columns) for name, layer in layers.items() if layer.role is not Role.embeddings}
    token_weights = head_weights = torch.empty(0)

    def observe(name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        largest = float(output.abs().max())
        if not np.isfinite(largest):
            raise StageError(
                f"the output of {name} is not finite on calibration images",
                hint="The checkpoint is unsound there: look at that layer's weights and at those before it.",
            )
        statistics.activations[name] = max(statistics.activations.get(name, 0.0), largest)
        if f"{name}.weight" in moments:
            tokens = _as_tokens(inputs[0], module)
            of_text = name.startswith("text.")
            moments[f"{name}.weight"].add(tokens, token_weights.flatten() if of_text else None)
        if name == "text.norm" and HEAD in moments:  # the model multiplies by the head's weight itself
            moments[HEAD].add(output.flatten(0, 1), head_weights.flatten())

    hooks = [
        module.register_forward_hook(_named(observe, name))
        for name, module in model.named_modules()
        if name and not any(module.children()) and not isinstance(module, nn.Embedding)
    ]
    for start in range(0, len(examples), config.batch):
        progress(start, 2 * len(examples), "activations")
        batch = batch_of(checkpoint, examples[start : start + config.batch])
        token_weights = _token_weights(batch, model.config.image_token_id, config.image_token_weight)
        head_weights = torch.nn.functional.pad(batch.answers[:, 1:].float(), (0, 1))
        logits = forward(model, batch)
        statistics.activations[LOGITS] = max(statistics.activations.get(LOGITS, 0.0), float(logits.abs().max()))
    for hook in hooks:
        hook.remove()
    for name, moment in moments.items():
        if moment.mass:
            statistics.second_moments[name] = moment.mean()
            statistics.ranges[name] = (moment.low, moment.high)


def _named(
    observe: Callable[[str, nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None], name: str
) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
    return lambda module, inputs, output: observe(name, module, inputs, output)


def _as_tokens(inputs: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """(..., in) or (B, in, H, W) -> (tokens, in)."""
    if isinstance(module, nn.Conv2d) and is_matrix(module):
        inputs = inputs.permute(0, 2, 3, 1)
    return inputs.reshape(-1, inputs.shape[-1])


def _token_weights(batch: Batch, image_token_id: int, image_token_weight: float) -> torch.Tensor:
    """(B, N): 1 for text, image_token_weight for image tokens, 0 for padding."""
    weights = torch.where(batch.ids == image_token_id, image_token_weight, 1.0)
    return weights * batch.present


def _measure_fisher(
    model: VisionLanguageModel,
    layers: dict[str, Layer],
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    statistics: Statistics,
    progress: Report,
) -> None:
    """The empirical Fisher information an answer token: the squared gradients of each example's loss, summed over the
    examples and divided by the number of their answer tokens."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in layers)
    totals = {name: torch.zeros(layer.shape) for name, layer in layers.items()}
    tokens = 0
    for index, example in enumerate(examples):
        progress(len(examples) + index, 2 * len(examples), "gradients")
        batch = batch_of(checkpoint, [example])
        answer_loss(forward(model, batch), batch).backward()  # type: ignore[no-untyped-call]
        tokens += int(batch.answers.sum())
        for name in layers:
            gradient = parameters[name].grad
            if gradient is not None:
                totals[name].addcmul_(gradient, gradient)
                parameters[name].grad = None
    for name, total in totals.items():
        if not torch.isfinite(total).all():
            raise StageError(
                f"the gradient of {name} is not finite on the calibration set",
                hint="The checkpoint is unsound there: look at that layer's weights.",
            )
        statistics.fisher[name] = total / tokens
