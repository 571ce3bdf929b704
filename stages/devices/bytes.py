"""How many bytes a model of some shape will take, as quantized and as shipped, before there is a weight of it."""

from dataclasses import replace
from functools import lru_cache

from stages.devices.operators import DECODE, ENCODER, graphs, on_meta, parameter_shapes
from stages.models.vlm import ModelConfig
from stages.quantizers.allocation import bytes_allowed
from stages.quantizers.choices import Choice, Role, allocates, choices, kept_of
from stages.quantizers.formats import TensorFormat
from stages.quantizers.layers import quantizable_layers, spatial_layers
from stages.schema import DeviceProfile, Format, QuantizeConfig, Runtime

# What a converted model has beside its weights, fitted to artifacts of the reference model and of four of its shape cut
# down (tests/stages/test_bytes.py holds three of them to 3 %): bytes an operator of the graphs, and what is always
# there, in which the descriptions count most. Operators are those of stages/devices/operators.py.
_WORD = 40  # of tokenizer.json, a word of the vocabulary
_ONNX_ENCODER, _ONNX_DECODER = 480, 359
_ONNX_ALWAYS, _ONNX_LAYER = 4_700, 684  # model.json tells of every layer's cache
_COREML_ENCODER, _COREML_DECODER, _COREML_PART = 490, 1_395, 100  # of the decoder twice: prefill and decode
_COREML_ALWAYS = 26_500


def artifact_bytes(
    model: ModelConfig,
    quantize: QuantizeConfig,
    device: DeviceProfile,
    *,
    context: int,
    tokenizer_bytes: int | None = None,
) -> int:
    """What convert's folder for that device will take: the weights and about what its files hold beside them.

    context: of the cache; Core ML's packages hold rotary tables for it. tokenizer_bytes: of tokenizer.json, which is
    the same for every shape of one model; None: by the vocabulary. Not known of are weights that are prepacked, the
    .ort format, and a context binary of a Hexagon. Raises as stored_bytes does.
    """
    assert model.text is not None  # graphs refuses a user's module
    counts = {name: len(found) for name, found in graphs(model, context=context, text_tokens=1).items()}
    encoder, decoder = counts.get(ENCODER, 0), counts[DECODE]
    size = sum(stored_bytes(model, quantize).values())
    size += _WORD * model.text.vocab_size if tokenizer_bytes is None else tokenizer_bytes
    if device.runtime is Runtime.onnxruntime:
        size += _ONNX_ENCODER * encoder + _ONNX_DECODER * decoder
        return size + _ONNX_LAYER * model.text.num_hidden_layers + _ONNX_ALWAYS
    parts = sum(len(form.parts()) for form in stored_formats(model, quantize).values())
    size += _COREML_ENCODER * encoder + _COREML_DECODER * decoder + _COREML_PART * parts
    return size + 2 * context * model.text.head_dim + _COREML_ALWAYS


def stored_bytes(model: ModelConfig, quantize: QuantizeConfig) -> dict[str, int]:
    """The packed bytes of each tensor, by name, as quantize will store it: exact but for values beyond float16's range,
    which stay float32, and for formats that are chosen by measurement.

    Those are as the budget's bits and bytes allow: what can be quantized takes all that they leave, each weight its
    share by its bytes in float16. A budget of divergence alone says nothing of bytes: then formats are as the rest of
    `quantize` says. Raises as quantizers.choices.choices does.
    """
    formats = stored_formats(model, quantize)
    found = {name: form.packed_bytes() for name, form in formats.items()}
    parameters = sum(form.size for form in formats.values())
    budget = bytes_allowed(quantize.budget, parameters) if allocates(quantize) else None
    if budget is None:
        return found
    floats = {name: 2 * formats[name].size for name in _weights(model)}
    rest = sum(size for name, size in found.items() if name not in floats)
    share = min(max(budget - rest, 0) / max(sum(floats.values()), 1), 1.0)
    return found | {name: int(share * size) for name, size in floats.items()}


def stored_formats(model: ModelConfig, quantize: QuantizeConfig) -> dict[str, TensorFormat]:
    """How quantize stores each tensor, by name, where no format is chosen by measurement."""
    chosen = choices(quantize, _weights(model))
    return {
        name: _format(shape, chosen[name]) if name in chosen else _plain(shape)
        for name, shape in parameter_shapes(model).items()
    }


@lru_cache(maxsize=1024)
def _weights(model: ModelConfig) -> dict[str, tuple[Role, tuple[int, ...]]]:
    module = on_meta(model)
    layers = {**quantizable_layers(module), **spatial_layers(module)}
    return {name: (layer.role, layer.shape) for name, layer in layers.items()}


def _plain(shape: tuple[int, ...]) -> TensorFormat:
    return TensorFormat("float", shape, 0)


def _format(shape: tuple[int, ...], choice: Choice) -> TensorFormat:
    """What a weight of that shape becomes by that choice, as quantizers.model stores it."""
    form = _plain(shape)
    if choice.bits and choice.format is Format.affine:
        form = replace(
            form, format="affine", bits=choice.bits, group_size=choice.group_size, symmetric=choice.symmetric
        )
    elif choice.bits:
        form = replace(
            form,
            format="palette",
            bits=choice.bits,
            group_size=0 if choice.group_size == shape[0] else choice.group_size,
            vector=choice.vector,
            channel_scale=choice.channel_scale,
        )
    if not choice.sparse:
        return form
    kept, of = kept_of(choice.sparsity_pattern) if choice.sparsity_pattern else (1 - choice.sparsity, 1)
    return replace(form, sparse=True, kept=round(form.size * kept / of))
