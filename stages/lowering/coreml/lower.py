"""From a quantized model to encoder.mlpackage and decoder.mlpackage (or main.mlpackage), for iOS 18."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.export import ExportedProgram

from pipelines.errors import LoweringError
from stages.devices.neural_engine import Finding, inspect_program
from stages.lowering.capture import capture_decoder, capture_fixed
from stages.lowering.coreml import decoder, elementwise, norms, operators, shapes  # noqa: F401  (they register emitters)
from stages.lowering.coreml.builder import CacheLayer, FunctionBuilder, FunctionSpec
from stages.lowering.coreml.package import save_package
from stages.lowering.coreml.ranges import Held, RangeCaller
from stages.lowering.coreml.verify import verify_package
from stages.lowering.coreml.weights import WeightBank
from stages.lowering.description import describe
from stages.lowering.graph import emit
from stages.lowering.limits import coreml_sizes
from stages.models.vlm import ModelConfig
from stages.quantizers.store import QuantizedStore

Ranges = Mapping[str, Mapping[str, float]]


def lower_coreml(
    config: ModelConfig,
    store: QuantizedStore,
    out: Path,
    *,
    context: int,
    prefill_chunk: int,
    head_width: int = 0,
    ranges: Ranges | None = None,
    overflow: str = "float32",
) -> dict[str, Any]:
    """Write the packages into `out` and return what model.json says of them.

    encoder.mlpackage   image (1, 3, S, S) float32 -> features (1, T, D) float16
    decoder.mlpackage   functions `prefill` (N = prefill_chunk) and `decode` (N = 1), which share their weights:
                        input_ids (1, N) int32, image_features (1, N, D) float16 (where there is an encoder),
                        position (1,) int32
                        -> logits (1, N, V) float16; states key_cache and value_cache (layers, KV, context, head_dim)
    main.mlpackage      a user's module: its inputs and outputs

    context: rows of the cache, a multiple of 32. A call must end within it: position + N <= context.
    head_width: the output head is several layers of at most so many words each, 0: one layer (see head.py).
    ranges: {"encoder" | "decoder" | "main": {node of the captured graph: largest |value| seen}}; overflow: what becomes
    of those beyond float16 (see ranges.py). "precision" of the result lists them; "risks" what the Neural Engine of
    some chip may not like (devices/neural_engine.py).
    Raises LoweringError for what Core ML cannot hold, and where the saved files are not what the store promised.
    """
    out.mkdir(parents=True, exist_ok=True)
    lowering = _Lowering(config, store, out, ranges or {}, overflow, head_width)
    functions = {}
    for name, captured in capture_fixed(config).items():
        spec = _module_spec(config, captured) if config.module else _encoder_spec(config)
        builder = lowering.function(spec, captured, name, WeightBank(store))
        functions |= {name: lowering.save(name, [builder])["main"]}
    if config.text:
        _check_sizes(context, prefill_chunk)
        bank, decoders = WeightBank(store), []
        for name, tokens in (("prefill", prefill_chunk), ("decode", 1)):
            spec = _decoder_spec(config, name, tokens, context)
            decoders.append(
                lowering.function(spec, capture_decoder(config, tokens, context), "decoder", bank, context=context)
            )
        functions |= lowering.save("decoder", decoders)
    sizes = {"context": context, "prefill_chunk": prefill_chunk}
    description = describe(config, runtime="coreml", suffix="mlpackage", functions=functions, **sizes)
    return description | {
        "precision": [held.to_dict() for held in lowering.held],
        "risks": [finding.to_dict() for finding in lowering.risks],
    }


class _Lowering:
    """What the packages of one model have in common."""

    def __init__(
        self,
        config: ModelConfig,
        store: QuantizedStore,
        out: Path,
        ranges: Ranges,
        overflow: str,
        head_width: int,
    ):
        self.held: list[Held] = []
        self.risks: list[Finding] = []
        self._config, self._store, self._out = config, store, out
        self._ranges, self._overflow, self._head_width = ranges, overflow, head_width

    def function(
        self, spec: FunctionSpec, captured: ExportedProgram, part: str, bank: WeightBank, *, context: int = 0
    ) -> FunctionBuilder:
        """Emit a captured graph; part: the name of its ranges."""
        with FunctionBuilder(spec, bank, context=context, head_width=self._head_width if context else 0) as builder:
            caller = RangeCaller(builder, captured, self._ranges.get(part, {}), self._overflow)
            outputs = emit(captured, "coreml", builder, self._inputs(builder, caller))
            builder.finish([caller.output(output) for output in outputs[: len(spec.outputs)]])
        self.held += caller.held
        return builder

    def save(self, name: str, builders: list[FunctionBuilder]) -> dict[str, Any]:
        """Write a package beside its place, verify it, and put it there."""
        path, bank = self._out / f"{name}.mlpackage", builders[0].bank
        with TemporaryDirectory(dir=self._out, prefix=".partial-") as folder:
            partial = Path(folder) / path.name
            spec = save_package(partial, builders, bank)
            verify_package(partial, spec, builders, bank)
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
        lines = {builder.spec.name: builder.lines for builder in builders}
        self.risks += inspect_program(spec, lines=lines, package=path.name)
        return {builder.spec.name: builder.spec.to_dict() | {"file": path.name} for builder in builders}

    def _inputs(self, builder: FunctionBuilder, caller: RangeCaller) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for name, (_, dtype, _) in builder.spec.inputs.items():
            var = builder.inputs[name]
            inputs[name] = var if dtype == "int32" else caller.input(name, var)
        for layer in range(self._config.text.num_hidden_layers if self._config.text and builder.context else 0):
            inputs[f"caches_{2 * layer}"] = CacheLayer("key_cache", layer)
            inputs[f"caches_{2 * layer + 1}"] = CacheLayer("value_cache", layer)
        return inputs


def _check_sizes(context: int, prefill_chunk: int) -> None:
    problem = coreml_sizes(context, prefill_chunk)
    if problem:
        raise LoweringError(problem[0], hint=problem[1])


def _encoder_spec(config: ModelConfig) -> FunctionSpec:
    assert config.vision is not None and config.text is not None
    size, tokens, width = config.vision.image_size, config.vision.tokens, config.text.hidden_size
    return FunctionSpec(
        name="main",
        summary=f"Vision encoder: an image of {size} x {size} pixels to {tokens} visual tokens.",
        inputs={
            "image": ((1, 3, size, size), "float32", "Pixels, red green blue, normalised as preprocessing.json says.")
        },
        outputs={"features": ((1, tokens, width), "float16", "Visual tokens, row by row, for the decoder.")},
    )


def _module_spec(config: ModelConfig, captured: ExportedProgram) -> FunctionSpec:
    assert config.module is not None
    module, results = config.module, captured.graph.output_node().args[0]
    return FunctionSpec(
        name="main",
        summary=f"{module.target}.",
        inputs={
            name: (tuple(spec["shape"]), spec["dtype"], f"{name}, as {module.target} takes it.")
            for name, spec in module.inputs.items()
        },
        outputs={
            name: (tuple(node.meta["val"].shape), "float16", f"{name}, as {module.target} returns it.")
            for name, node in zip(module.outputs, results, strict=True)  # type: ignore[arg-type]
        },
    )


def _decoder_spec(config: ModelConfig, name: str, tokens: int, context: int) -> FunctionSpec:
    text = config.text
    assert text is not None
    cache = (text.num_hidden_layers, text.num_key_value_heads, context, text.head_dim)
    rows = f"Visual tokens; row i is used where input_ids[i] is {config.image_token_id}, other rows are ignored."
    features = {"image_features": ((1, tokens, text.hidden_size), "float16", rows)} if config.vision else {}
    return FunctionSpec(
        name=name,
        summary=f"Language model, {tokens} token{'s' if tokens > 1 else ''} a call, against a cache of {context} rows.",
        inputs={
            "input_ids": ((1, tokens), "int32", "Token numbers."),
            **features,
            "position": ((1,), "int32", f"Position of the first token; the last must stay below {context}."),
        },
        outputs={"logits": ((1, tokens, text.vocab_size), "float16", "Score of each token as the next one.")},
        states={
            "key_cache": (cache, "float16", "Keys of the tokens so far, layer by layer."),
            "value_cache": (cache, "float16", "Values of the tokens so far, layer by layer."),
        },
    )
