"""From a quantized model to encoder.mlpackage and decoder.mlpackage, for iOS 18."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.errors import LoweringError
from stages.lowering.capture import capture_decoder, capture_encoder
from stages.lowering.coreml import decoder, operators  # noqa: F401  (their emitters register themselves)
from stages.lowering.coreml.builder import CacheLayer, FunctionBuilder, FunctionSpec
from stages.lowering.coreml.package import save_package
from stages.lowering.coreml.verify import verify_package
from stages.lowering.coreml.weights import WeightBank
from stages.lowering.description import describe
from stages.lowering.graph import emit
from stages.lowering.limits import coreml_sizes
from stages.models.vlm import ModelConfig
from stages.quantizers.store import QuantizedStore


def lower_coreml(
    config: ModelConfig, store: QuantizedStore, out: Path, *, context: int, prefill_chunk: int
) -> dict[str, Any]:
    """Write the two packages into `out` and return what model.json says of them.

    encoder.mlpackage   image (1, 3, S, S) float32 -> features (1, T, D) float16
    decoder.mlpackage   functions `prefill` (N = prefill_chunk) and `decode` (N = 1), which share their weights:
                        input_ids (1, N) int32, image_features (1, N, D) float16, position (1,) int32
                        -> logits (1, N, V) float16; states key_cache and value_cache (layers, KV, context, head_dim)

    context: rows of the cache, a multiple of 32. A call must end within it: position + N <= context.
    Raises LoweringError for what Core ML cannot hold, and where the saved files are not what the store promised.
    """
    _check_sizes(context, prefill_chunk)
    bank = WeightBank(store)
    with FunctionBuilder(_encoder_spec(config), bank) as encoder:
        encoder.finish(emit(capture_encoder(config), "coreml", encoder, {"image": encoder.fp16("image")}))
    functions = {"encoder": _save(out, "encoder", [encoder], bank)["main"]}

    bank = WeightBank(store)
    decoders = []
    for name, tokens in (("prefill", prefill_chunk), ("decode", 1)):
        captured = capture_decoder(config, tokens, context)
        with FunctionBuilder(_decoder_spec(config, name, tokens, context), bank, context=context) as builder:
            builder.finish(emit(captured, "coreml", builder, _decoder_inputs(config, builder))[:1])
        decoders.append(builder)
    functions |= _save(out, "decoder", decoders, bank)
    sizes = {"context": context, "prefill_chunk": prefill_chunk}
    return describe(config, runtime="coreml", suffix="mlpackage", functions=functions, **sizes)


def _check_sizes(context: int, prefill_chunk: int) -> None:
    problem = coreml_sizes(context, prefill_chunk)
    if problem:
        raise LoweringError(problem[0], hint=problem[1])


def _save(out: Path, name: str, builders: list[FunctionBuilder], bank: WeightBank) -> dict[str, Any]:
    path = out / f"{name}.mlpackage"
    with TemporaryDirectory(dir=out, prefix=".partial-") as folder:
        partial = Path(folder) / path.name
        spec = save_package(partial, builders, bank)
        verify_package(partial, spec, builders, bank)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    return {builder.spec.name: builder.spec.to_dict() | {"file": path.name} for builder in builders}


def _encoder_spec(config: ModelConfig) -> FunctionSpec:
    size, tokens, width = config.vision.image_size, config.vision.tokens, config.text.hidden_size
    return FunctionSpec(
        name="main",
        summary=f"Vision encoder: an image of {size} x {size} pixels to {tokens} visual tokens.",
        inputs={
            "image": ((1, 3, size, size), "float32", "Pixels, red green blue, normalised as preprocessing.json says.")
        },
        outputs={"features": ((1, tokens, width), "float16", "Visual tokens, row by row, for the decoder.")},
    )


def _decoder_spec(config: ModelConfig, name: str, tokens: int, context: int) -> FunctionSpec:
    text = config.text
    cache = (text.num_hidden_layers, text.num_key_value_heads, context, text.head_dim)
    features = f"Visual tokens; row i is used where input_ids[i] is {config.image_token_id}, other rows are ignored."
    return FunctionSpec(
        name=name,
        summary=f"Language model, {tokens} token{'s' if tokens > 1 else ''} a call, against a cache of {context} rows.",
        inputs={
            "input_ids": ((1, tokens), "int32", "Token numbers."),
            "image_features": ((1, tokens, text.hidden_size), "float16", features),
            "position": ((1,), "int32", f"Position of the first token; the last must stay below {context}."),
        },
        outputs={"logits": ((1, tokens, text.vocab_size), "float16", "Score of each token as the next one.")},
        states={
            "key_cache": (cache, "float16", "Keys of the tokens so far, layer by layer."),
            "value_cache": (cache, "float16", "Values of the tokens so far, layer by layer."),
        },
    )


def _decoder_inputs(config: ModelConfig, builder: FunctionBuilder) -> dict[str, Any]:
    inputs: dict[str, Any] = {name: builder.inputs[name] for name in ("input_ids", "image_features", "position")}
    for layer in range(config.text.num_hidden_layers):
        inputs[f"caches_{2 * layer}"] = CacheLayer("key_cache", layer)
        inputs[f"caches_{2 * layer + 1}"] = CacheLayer("value_cache", layer)
    return inputs
