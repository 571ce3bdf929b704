"""ONNX Runtime: encoder.onnx and decoder.onnx with external data, from the captured graphs and the quantized store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch.export import ExportedProgram

from stages.artifacts import DeviceModel
from stages.lowering.capture import capture_fixed
from stages.lowering.description import describe
from stages.lowering.graph import emit, user_inputs
from stages.lowering.onnx import arithmetic, attention, operators, shapes, vision  # noqa: F401  emitters register
from stages.lowering.onnx.builder import GraphBuilder, data_type
from stages.lowering.onnx.decoder import lower_decoder
from stages.lowering.onnx.deploy import deploy, session_options
from stages.lowering.onnx.genai import genai_files
from stages.lowering.onnx.linears import parameters
from stages.lowering.onnx.weights import check_formats, supported_formats
from stages.models.vlm import ModelConfig
from stages.quantizers.store import QuantizedStore
from stages.runtimes.processor import machine

__all__ = ["lower_onnx", "lower_program", "supported_formats"]


def lower_onnx(
    config: ModelConfig,
    store: QuantizedStore,
    out: Path,
    *,
    context: int,
    accuracy_level: int,
    format: str = "onnx",
    prepacking: str = "load",
    architecture: str | None = None,
    unpack_weights: str = "never",
    optional_inputs: bool = True,
) -> dict[str, Any]:
    """Write the model's graphs into out; returns the description for model.json.

    encoder  image (1, 3, S, S) float32 -> features (1, T, hidden) float32, where there is a tower
    decoder  as onnxruntime-genai drives one (see decoder.py), with genai_config.json beside it where it can
    main     of a user's module: the inputs and outputs that its configuration names

    context: rows of the rotary tables, the most that prompt and answer can have. accuracy_level: 0 or 1 computes with
    float32 inputs, 4 rounds the inputs of quantized products to int8, block by block (faster; int8 weights need it).
    format: "onnx", graphs with external data, or "ort", for builds of the runtime with a few operators only.
    prepacking: "load", "off" or "saved", and architecture, the device's processor: see deploy.py.
    unpack_weights: "never": MatMulNBits reads quantized weights as they are; "folded": they are unpacked to float32
    when the model is loaded; "dequantized": DequantizeLinear unpacks those of the graphs of fixed shapes in each run,
    and the decoder has MatMulNBits. optional_inputs: inputs that have a default may be left out; onnxruntime-web wants
    all inputs, and onnxruntime-genai feeds none of these, so that without them its files are not written.
    Raises LoweringError for an operator, a weight format, or a choice of these that ONNX Runtime cannot hold.
    """
    check_formats(store)
    settings: dict[str, Any] = {
        "accuracy_level": accuracy_level,
        "context": context,
        "unpack_weights": unpack_weights,
        "optional_inputs": optional_inputs,
    }
    functions: dict[str, Any] = {}
    for name, program in capture_fixed(config).items():
        outputs = config.module.outputs if config.module else ["features"]
        functions[name] = lower_program(program, store, out / f"{name}.onnx", outputs=outputs, **settings)
    if config.text is not None:
        unpacked = "folded" if unpack_weights == "folded" else "never"
        with GraphBuilder(out / "decoder.onnx", store, **{**settings, "unpack_weights": unpacked}) as graph:
            functions["decoder"] = _save(graph, "decoder", *lower_decoder(config, graph))
    deploy(
        [out / f"{name}.onnx" for name in functions], format=format, prepacking=prepacking, architecture=architecture
    )
    for name in functions:
        functions[name]["file"] = f"{name}.{format}"
    description = describe(
        config, runtime="onnxruntime", suffix=format, context=context, prefill_chunk=None, functions=functions
    )
    options = session_options(prepacking)
    if config.text is not None and optional_inputs:
        files = genai_files(
            config.text, store.path, filename=f"decoder.{format}", context=context, session_options=options
        )
        for name, content in files.items():
            DeviceModel(out).write_json(name, content)
    extra: dict[str, Any] = {"session_options": options} if options else {}
    if prepacking == "saved":
        extra["prepacked_for"] = machine()
    return description | extra


def lower_program(
    program: ExportedProgram,
    store: QuantizedStore,
    path: Path,
    *,
    outputs: Sequence[str],
    accuracy_level: int,
    **settings: Any,
) -> dict[str, Any]:
    """Write one captured graph of fixed shapes to path, its outputs named so; returns what model.json says of it.

    Inputs keep their names and dtypes. settings: of the GraphBuilder. Raises LoweringError as lower_onnx does.
    """
    with GraphBuilder(path, store, accuracy_level=accuracy_level, **settings) as graph:
        inputs = {
            name: graph.input(name, data_type(value.dtype), value.shape) for name, value in user_inputs(program).items()
        }
        graph.parameters = parameters(program)
        values = emit(program, "onnx", graph, inputs)
        shapes = [tuple(node.meta["val"].shape) for node in program.graph.output_node().args[0]]
        results = dict(zip(outputs, zip(values, shapes, strict=True), strict=True))
        return _save(graph, path.stem, list(inputs.values()), results)


def _save(graph: GraphBuilder, name: str, inputs: list[ir.Value], outputs: dict[str, Any]) -> dict[str, Any]:
    attention.fuse_residuals(graph)
    graph.save(name, inputs, outputs)
    return {
        "file": graph.path.name,
        "inputs": {str(value.name): _described(value) for value in inputs},
        "outputs": {str(value.name): _described(value) for value, _ in outputs.values()},
        "states": {},
    }


def _described(value: ir.Value) -> dict[str, Any]:
    """optional: there is a default, so that a caller may leave the input out."""
    sizes = [size if isinstance(size, int) else str(size.value) for size in value.shape or ()]
    optional = {"optional": True} if value.const_value is not None else {}
    return {"shape": sizes, "dtype": str(value.dtype.numpy())} | optional  # type: ignore[union-attr]
