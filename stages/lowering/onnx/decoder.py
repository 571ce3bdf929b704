"""The decoder as onnxruntime-genai drives one: token ids, a mask that says by its length how far they go, caches."""

import numpy as np
import onnx_ir as ir

from pipelines.errors import LoweringError
from stages.lowering.capture import capture_decoder
from stages.lowering.graph import emit, user_inputs
from stages.lowering.limits import onnx_heads
from stages.lowering.onnx.builder import GraphBuilder
from stages.lowering.onnx.linears import parameters
from stages.models.vlm import ModelConfig

TOKENS, TOTAL, PAST, ROWS, ANSWERED = "tokens", "total", "past", "rows", "answered"  # names of the sizes that vary
Outputs = dict[str, tuple[ir.Value, tuple[int | str, ...]]]


def lower_decoder(config: ModelConfig, graph: GraphBuilder) -> tuple[list[ir.Value], Outputs]:
    """Emit the decoder; returns its inputs and, by name, its outputs with their shapes.

    input_ids (1, N) int64; attention_mask (1, P + N) int64, of which only the length is read; past_key_values.I.key and
    .value (1, KV, P or context, head_dim) float32. They give logits (1, N, vocabulary) float32, present.I.key, .value.
    Two more inputs may be left out, where a graph may have such inputs: image_features (1, N, hidden) float32, of
    models with a tower: row i is used where input_ids[i] is the image token; and logits_to_keep (1,) int64: logits of
    the last so many tokens alone, 0: of all.
    Raises LoweringError for heads of a width that GroupQueryAttention does not take.
    """
    text = config.text
    if problem := onnx_heads(text.head_dim):
        raise LoweringError(problem[0], hint=problem[1])
    program = capture_decoder(config, None, graph.context)
    graph.parameters = parameters(program)
    ids = graph.input("input_ids", ir.DataType.INT64, (1, TOKENS))
    mask = graph.input("attention_mask", ir.DataType.INT64, (1, TOTAL))
    past, present = ((1, text.num_key_value_heads, rows, text.head_dim) for rows in (PAST, ROWS))
    caches = [
        graph.input(f"past_key_values.{layer}.{part}", ir.DataType.FLOAT, past)
        for layer in range(text.num_hidden_layers)
        for part in ("key", "value")
    ]
    keep = graph.optional_input("logits_to_keep", (1,), np.zeros(1, np.int64))
    given: dict[str, ir.Value] = {"input_ids": ids, "position": _position(graph, ids, mask)}
    optional = [keep]
    if config.vision is not None:
        blank = np.zeros((1, 1, text.hidden_size), np.float32)  # broadcasts: text alone needs no rows
        features = graph.optional_input("image_features", (1, "image_rows", text.hidden_size), blank)
        given["image_features"] = features
        optional.append(features)
    names = user_inputs(program)
    given |= dict(zip([name for name in names if name not in given], caches, strict=True))
    logits, *updated = emit(program, "onnx", graph, given)
    _keep_last(graph, logits, keep)
    labels = (str(value.name).replace("past_key_values", "present") for value in caches)
    outputs: Outputs = {"logits": (logits, (1, ANSWERED, text.vocab_size))}
    outputs |= {label: (cache, present) for label, cache in zip(labels, updated, strict=True)}
    return [ids, mask, *caches, *optional], outputs


def _position(graph: GraphBuilder, ids: ir.Value, mask: ir.Value) -> ir.Value:
    """Where the first of these tokens stands, (1,) int64; also leaves what GroupQueryAttention wants to know."""
    count = graph.op("Shape", ids, dtype=ir.DataType.INT64, start=1, end=2)
    total = graph.op("Shape", mask, dtype=ir.DataType.INT64, start=1, end=2)
    position = graph.op("Sub", total, count)
    rows = graph.op("Cast", total, dtype=ir.DataType.INT32, to=ir.DataType.INT32.value)
    last = graph.op("Sub", rows, graph.constant([1], np.int32))
    graph.shared["lengths", position] = last, graph.op("Squeeze", rows)
    return position


def _keep_last(graph: GraphBuilder, logits: ir.Value, keep: ir.Value) -> None:
    """The product with the vocabulary, the largest of all, for the rows that are asked for: x[:, -keep:]."""
    head = logits.producer()
    assert head is not None and head.inputs[0] is not None
    start = graph.op("Neg", keep)
    end, axis = (graph.constant([number], np.int64) for number in (np.iinfo(np.int64).max, 1))
    kept = graph.op("Slice", head.inputs[0], start, end, axis)
    head.replace_input_with(0, kept)
    graph.move_to_end(head)
