"""What a model computes, operator by operator: products, bytes and weights of each, without a weight in memory.

    for operator in graphs(config, context=256, text_tokens=16)["decode"]:
        print(operator.name, operator.flops, operator.weights, operator.activation_bytes)

The modules of stages/models run on the meta device, and each operator that they call is written down with the shapes
that it met. Operators stand as torch has them before decomposition (linear, conv2d, rms_norm), which is about how the
runtimes fuse them; what only looks at memory in another way (view, transpose) is no operator.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.errors import StageError
from stages.models.vlm import Decoder, Encoder, ModelConfig

ENCODER, PREFILL, DECODE = "encoder", "prefill", "decode"
_FLOAT = 4  # bytes of an activation


@dataclass(frozen=True)
class Operator:
    """name: torch's, such as linear. flops: of products alone, two for each multiplication and addition; 0 for what
    goes through its elements one by one. weights: the parameters that it reads whole, by name; of a table of embeddings
    only rows are read, and those count as activations. activation_bytes: read and written, in float32. elements: of the
    results.
    """

    name: str
    flops: int
    weights: tuple[str, ...]
    activation_bytes: int
    elements: int


def graphs(config: ModelConfig, *, context: int, text_tokens: int) -> Mapping[str, tuple[Operator, ...]]:
    """encoder: one image, where there is a tower. prefill: its visual tokens and `text_tokens` more, at once, with
    logits of the last alone. decode: one token, the last that `context` rows of the cache have room for.

    Raises StageError for a user's module, which has none of these graphs, and for a context that is shorter than the
    prompt.
    """
    if config.text is None:
        raise StageError(
            "a user's module has no encoder, prefill and decode whose operators could be counted",
            hint="Search and predict language models; a module is measured where it runs.",
        )
    prompt = text_tokens + (config.vision.tokens if config.vision else 0)
    if context < prompt:
        raise StageError(
            f"a context of {context} tokens is shorter than a prompt of {prompt}",
            hint=f"Set convert.context={prompt} or more, or search smaller images.",
        )
    found = {PREFILL: _decoder(config, prompt, prompt), DECODE: _decoder(config, 1, context)}
    return {ENCODER: _encoder(config), **found} if config.vision else found


@lru_cache(maxsize=1024)
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """The shape of each tensor of the model, by name."""
    return {name: tuple(tensor.shape) for name, tensor in on_meta(config).state_dict().items()}


@lru_cache(maxsize=1024)
def parameter_sizes(config: ModelConfig) -> Mapping[str, int]:
    """How many elements each tensor of the model has, by name."""
    return {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}


@lru_cache(maxsize=4)
def on_meta(config: ModelConfig) -> Any:
    """The model without weights, in evaluation mode. Shared: do not change it."""
    with torch.device("meta"):
        return config.build().eval()


@lru_cache(maxsize=1024)
def _encoder(config: ModelConfig) -> tuple[Operator, ...]:
    assert config.vision is not None
    size = config.vision.image_size
    return _recorded(config, lambda model: Encoder(model)(torch.empty(1, 3, size, size)))


@lru_cache(maxsize=1024)
def _decoder(config: ModelConfig, tokens: int, rows: int) -> tuple[Operator, ...]:
    """`tokens` at once against caches of `rows`, and the head for the last."""
    text = config.text
    assert text is not None

    def run(model: Any) -> None:
        cache = torch.empty(1, text.num_key_value_heads, rows, text.head_dim)
        features = torch.empty(1, tokens, text.hidden_size) if config.vision else None
        ids, position = torch.empty(1, tokens, dtype=torch.int32), torch.empty(1, dtype=torch.int32)
        hidden, _ = Decoder(model, head=False)(ids, features, position, [cache] * (2 * text.num_hidden_layers))
        model.text.head(hidden[:, -1:])

    return _recorded(config, run)


def _recorded(config: ModelConfig, run: Callable[[Any], Any]) -> tuple[Operator, ...]:
    model = on_meta(config)
    names = {tensor.untyped_storage()._cdata: name for name, tensor in model.state_dict().items()}
    with torch.device("meta"), torch.inference_mode(), _Recorder(names) as recorder:
        run(model)
    return tuple(recorder.operators)


class _Recorder(TorchDispatchMode):
    """Writes down what is called. names: of the parameters, by the storage that they and their views share."""

    def __init__(self, names: dict[int, str]):
        super().__init__()
        self.names, self.operators = names, list[Operator]()

    def __torch_dispatch__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shape = _SHAPES.get(called)
        result = args[0].new_empty(shape(*args)) if shape else called(*args, **(kwargs or {}))
        inputs = {_storage(tensor): tensor for tensor in _tensors((args, kwargs))}
        results = [tensor for tensor in _tensors(result) if _storage(tensor) not in inputs]
        if inputs and results:
            self.operators.append(self._operator(called, args, inputs, results))
        return result

    def _operator(
        self, called: Any, args: Any, inputs: dict[int, torch.Tensor], results: list[torch.Tensor]
    ) -> Operator:
        name, output = called.overloadpacket.__name__, results[0]
        weights = tuple(self.names[key] for key in inputs if key in self.names)
        read = sum(tensor.numel() for key, tensor in inputs.items() if key not in self.names)
        written = sum(tensor.numel() for tensor in results)
        if called is torch.ops.aten.embedding.default:
            weights, read = (), read + output.numel()
        elif called is torch.ops.tapeout.cached_attention.default:  # in place: new rows are written, all are read
            key, rows = args[1], args[3]
            read, written = args[0].numel() + 2 * (key.numel() + rows.numel()), output.numel() + 2 * key.numel()
        flops = _FLOPS[called](output, *args) if called in _FLOPS else 0
        return Operator(name, flops, weights, _FLOAT * (read + written), output.numel())


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _linear(output: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *others: Any) -> int:
    return 2 * output.numel() * weight.shape[1]


def _matmul(output: torch.Tensor, x: torch.Tensor, *others: Any) -> int:
    return 2 * output.numel() * x.shape[-1]


def _convolution(output: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *others: Any) -> int:
    return 2 * output.numel() * math.prod(weight.shape[1:])


def _attention(output: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any) -> int:
    """Scores, and their products with the values: (B, H, N, D) against M rows."""
    return 2 * query.numel() * key.shape[-2] + 2 * math.prod(query.shape[:-1]) * key.shape[-2] * value.shape[-1]


def _cached(output: torch.Tensor, query: torch.Tensor, *others: torch.Tensor) -> int:
    return _attention(output, query, others[2], others[3])


_aten = torch.ops.aten
_FLOPS: dict[Any, Callable[..., int]] = {
    _aten.linear.default: _linear,
    _aten.matmul.default: _matmul,
    _aten.conv2d.default: _convolution,
    _aten.scaled_dot_product_attention.default: _attention,
    torch.ops.tapeout.cached_attention.default: _cached,
}
# torch's own shape functions take most of the time, so the usual operators have their own.
_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten.linear.default: lambda x, weight, *rest: (*x.shape[:-1], weight.shape[0]),
    torch.ops.tapeout.rotary.default: lambda x, *rest: x.shape,
    **{
        called: lambda x, *rest: x.shape
        for called in (_aten.rms_norm.default, _aten.layer_norm.default, _aten.gelu.default, _aten.silu.default)
    },
}
