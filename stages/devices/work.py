"""What the graphs of a model cost, whatever runs them: operators, arithmetic, bytes that a runtime reads and keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from stages.devices.operators import DECODE, ENCODER, PREFILL, Operator, graphs, parameter_sizes
from stages.models.vlm import ModelConfig
from stages.schema import Runtime

_HALF, _SINGLE = 2, 4  # bytes of a float
_TABLE = "text.embed_tokens.weight"


@dataclass(frozen=True)
class Work:
    """Of one run of a graph. gigaflops: 10^9 operations, of which a multiplication with its addition is two.
    megabytes: 10^6 bytes of weights as the runtime reads them; megaparameters: 10^6 of their elements.
    activation_megabytes: of the operator that reads and writes the most."""

    operators: int
    gigaflops: float
    megabytes: float
    megaparameters: float
    activation_megabytes: float


def work_of(
    model: ModelConfig, sizes: Mapping[str, int], runtime: Runtime, *, context: int, text_tokens: int
) -> dict[str, Work]:
    """encoder (where there is a tower), prefill and decode, as stages/devices/operators.py has them.

    sizes: the stored bytes of each weight, by name; of what is missing, float32. ONNX Runtime's CPU kernels compute in
    float32 and read quantized codes only in linears: other weights are float32 from loading on. Core ML's activations
    are float16, and its weights stay as stored. Raises StageError as `graphs` does.
    """
    found = graphs(model, context=context, text_tokens=text_tokens)
    elements = parameter_sizes(model)
    return {name: _work(found[name], elements, sizes, runtime) for name in (ENCODER, PREFILL, DECODE) if name in found}


def as_loaded(model: ModelConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    """sizes, where products' weights are unpacked when the model is loaded: what is missing in it is float32. A table
    of embeddings that is no product's weight too stays as it is stored."""
    assert model.text is not None
    kept = () if model.text.tie_word_embeddings else (_TABLE,)
    return {name: sizes[name] for name in kept if name in sizes}


def loaded_bytes(model: ModelConfig, sizes: Mapping[str, int], runtime: Runtime) -> tuple[int, int]:
    """(codes, floats) of all weights as the runtime holds them, each once: what stays quantized, and what does not.
    Raises as work_of does."""
    elements, codes, floats = parameter_sizes(model), 0, 0
    linears = _linears(model)
    for name, count in elements.items():
        stored = sizes.get(name, _SINGLE * count)
        if runtime is Runtime.coreml or _packed(count, stored, name in linears):
            codes += stored
        else:
            floats += _SINGLE * count
    return codes, floats


def cache_bytes(model: ModelConfig, runtime: Runtime, *, context: int) -> int:
    """Of keys and values of `context` tokens: float32 under ONNX Runtime, float16 under Core ML."""
    text = model.text
    assert text is not None
    each = _SINGLE if runtime is Runtime.onnxruntime else _HALF
    return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * context * each


def _work(
    operators: tuple[Operator, ...], elements: Mapping[str, int], sizes: Mapping[str, int], runtime: Runtime
) -> Work:
    read = [(operator, name) for operator in operators for name in operator.weights]
    share = 1.0 if runtime is Runtime.onnxruntime else _HALF / _SINGLE
    return Work(
        len(operators),
        sum(operator.flops for operator in operators) / 1e9,
        sum(_read_bytes(name, operator.name == "linear", elements, sizes, runtime) for operator, name in read) / 1e6,
        sum(elements[name] for _, name in read) / 1e6,
        share * max(operator.activation_bytes for operator in operators) / 1e6,
    )


def _read_bytes(
    name: str, linear: bool, elements: Mapping[str, int], sizes: Mapping[str, int], runtime: Runtime
) -> int:
    stored = sizes.get(name, _SINGLE * elements[name])
    if runtime is Runtime.coreml or _packed(elements[name], stored, linear):
        return stored
    return _SINGLE * elements[name]


def _packed(elements: int, stored: int, linear: bool) -> bool:
    """Whether ONNX Runtime's kernels read the codes: of linears, and tables of embeddings, below float16."""
    return linear and stored < _HALF * elements


@lru_cache(maxsize=64)
def _linears(model: ModelConfig) -> frozenset[str]:
    """Weights of linears, and the table of embeddings, whose rows are read from its codes."""
    text, vision = model.text, model.vision
    assert text is not None
    found = graphs(model, context=(vision.tokens if vision else 0) + 1, text_tokens=1)
    names = {
        name for each in found.values() for operator in each if operator.name == "linear" for name in operator.weights
    }
    return frozenset(names | {_TABLE})
