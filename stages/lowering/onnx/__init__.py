"""ONNX Runtime: encoder.onnx and decoder.onnx with external data, from the captured graphs and the quantized store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from torch.export import ExportedProgram

from stages.lowering.capture import capture_encoder
from stages.lowering.description import describe
from stages.lowering.graph import emit, user_inputs
from stages.lowering.onnx import attention, operators  # noqa: F401  their emitters register on import
from stages.lowering.onnx.builder import GraphBuilder
from stages.lowering.onnx.decoder import lower_decoder
from stages.lowering.onnx.linears import parameters
from stages.lowering.onnx.weights import check_formats, supported_formats
from stages.models.vlm import ModelConfig
from stages.quantizers.store import QuantizedStore

__all__ = ["lower_onnx", "lower_program", "supported_formats"]

def lower_onnx(
    config: ModelConfig, store: QuantizedStore, out: Path, *, context: int, accuracy_level: int
) -> dict[str, Any]:
    """Write encoder.onnx and decoder.onnx with their .data into out; returns the description for model.json.

    encoder  image (1, 3, S, S) float32 -> features (1, T, hidden) float32
    decoder  input_ids (1, N) int64, image_features (1, N, hidden) float32, position (1,) int64, past_key_values.I.key
             and .value (1, KV, P, head_dim) float32 -> logits (1, N, vocabulary) float32, present.I.key and .value.
             N is any number. P is `context` (give the same buffer as past and present), or the rows before position.

    context: rows of the rotary tables, the most that prompt and answer can have. accuracy_level: 0 or 1 computes with
    float32 inputs, 4 rounds the inputs of quantized products to int8, block by block (faster; int8 weights need it).
    Raises LoweringError for an operator or a weight format that ONNX Runtime cannot hold.
    """
    check_formats(store)
    settings: dict[str, int] = {"accuracy_level": accuracy_level, "context": context}
    encoder = lower_program(capture_encoder(config), store, out / "encoder.onnx", outputs=["features"], **settings)
    with GraphBuilder(out / "decoder.onnx", store, **settings) as graph:
        decoder = _save(graph, "decoder", *lower_decoder(config, graph))
    functions = {"encoder": encoder, "decoder": decoder}
    return describe(
        config, runtime="onnxruntime", suffix="onnx", context=context, prefill_chunk=None, functions=functions
    )


def lower_program(
    program: ExportedProgram,
    store: QuantizedStore,
    path: Path,
    *,
    outputs: Sequence[str],
    context: int = 0,
    accuracy_level: int,
) -> dict[str, Any]:
    """Write one captured graph of fixed shapes to path, its outputs named so; returns what model.json says of it.

    Inputs keep their names and dtypes. Raises LoweringError as lower_onnx does.
    """
    with GraphBuilder(path, store, context=context, accuracy_level=accuracy_level) as graph:
        inputs = {
            name: graph.input(
                name, ir.DataType.from_numpy(np.dtype(str(value.dtype).removeprefix("torch."))), value.shape
            )
            for name, value in user_inputs(program).items()
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
        "inputs": {str(value.name): _described(value) for value in inputs},  # those with a default may be left out
        "outputs": {str(value.name): _described(value) for value, _ in outputs.values()},
        "states": {},
    }


def _described(value: ir.Value) -> dict[str, Any]:
    sizes = [size if isinstance(size, int) else str(size.value) for size in value.shape or ()]
    optional = {"optional": True} if value.const_value is not None else {}
    return {"shape": sizes, "dtype": str(value.dtype.numpy())} | optional  # type: ignore[union-attr]
