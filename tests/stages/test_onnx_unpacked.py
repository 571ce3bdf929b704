"""Weights that are unpacked when the model is loaded: the numbers of the packed ones, as small a file, float products;
and graphs without optional inputs, as onnxruntime-web wants them."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from stages.runtimes.generate import generate
from stages.schema import Unpacking
from tests.converted import Converted, converted, profile
from tests.mobile.web import sdk_or_skip
from tests.stages.test_onnx import close, prompt

WEB = Path(__file__).parents[2] / "mobile" / "web"
DEVICE = replace(profile(), unpack_weights=Unpacking.folded, optional_inputs=False)
DEQUANTIZED = replace(DEVICE, unpack_weights=Unpacking.dequantized)
VARIANTS = {
    "int4": {"bits": 4, "embeddings": 4, "convolutions": 4},
    "int4-symmetric-tied": {"bits": 4, "embeddings": 4, "convolutions": 4, "symmetric": True, "tied": True},
    "int4-tied-groups-of-48": {"bits": 4, "embeddings": 4, "group_size": 48, "tied": True},
    "int8-a-row-symmetric": {"bits": 8, "group_size": 0, "symmetric": True},
    "int8": {"bits": 8},
    "int2": {"bits": 2, "embeddings": 2, "convolutions": 2},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Converted, Converted]:
    """Packed, unpacked."""
    root = tmp_path_factory.mktemp("toy")
    return converted(root / "packed", **request.param), converted(root / "unpacked", device=DEVICE, **request.param)


def logits_of(toy: Converted) -> NDArray[np.float32]:
    ids, rows = prompt()
    return toy.session.step(ids, rows, 0, toy.session.start())


def size_of(toy: Converted) -> int:
    return sum(path.stat().st_size for path in toy.device_model.path.glob("*.onnx.data"))


def stored_graph(toy: Converted, part: str) -> onnx.GraphProto:
    return onnx.load(toy.device_model.path / f"{part}.onnx", load_external_data=False).graph


def loaded(toy: Converted, part: str, folder: Path) -> onnx.GraphProto:
    """The graph as the runtime has it once it is loaded."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / f"{part}.onnx")
    onnxruntime.InferenceSession(toy.device_model.path / f"{part}.onnx", options)
    return onnx.load(folder / f"{part}.onnx", load_external_data=False).graph


def test_numbers_are_those_of_the_packed_weights(pair: tuple[Converted, Converted]) -> None:
    packed, unpacked = pair
    assert close(logits_of(unpacked), logits_of(packed))
    pixels = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    assert close(unpacked.session.encode(pixels), packed.session.encode(pixels))


def test_answers_are_those_of_the_packed_weights(pair: tuple[Converted, Converted]) -> None:
    ids, rows = prompt(12)
    found = [generate(toy.session, ids, rows[2:7], end_id=-1, max_new_tokens=12) for toy in pair]
    assert found[0] == found[1] and len(found[1]) == 12


def test_the_file_is_as_small(pair: tuple[Converted, Converted]) -> None:
    packed, unpacked = (size_of(toy) for toy in pair)
    assert unpacked <= 1.05 * packed, "zero points of 2 bits are of 4 there, and small parts are aligned"


def test_once_loaded_products_are_of_float_weights_alone(pair: tuple[Converted, Converted], tmp_path: Path) -> None:
    """Nothing is unpacked by a run: all of it was folded; and linears of one input are one product."""
    graph = loaded(pair[1], "decoder", tmp_path)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "FusedMatMul")]
    assert len(products) == 2 * 4 + 1  # query, key and value are one product; gate and up are one
    assert all(constants[node.input[1]].data_type == onnx.TensorProto.FLOAT for node in products)
    left = {node.op_type for node in graph.node}
    assert not left & {"MatMulNBits", "DequantizeLinear", "Expand", "Concat", "BitShift", "BitwiseAnd"}
    # Of the places in the cache, not of weights:
    assert sum(node.op_type == "Sub" for node in graph.node) <= 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_may_unpack_them_instead_where_nothing_folds(tmp_path: Path, variant: str) -> None:
    """The same numbers from the encoder, as DequantizeLinear reads it; the decoder's products read codes."""
    folded = converted(tmp_path / "folded", device=DEVICE, **VARIANTS[variant])
    dequantized = converted(tmp_path / "dequantized", device=DEQUANTIZED, **VARIANTS[variant])
    pixels = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    assert close(dequantized.session.encode(pixels), folded.session.encode(pixels))
    assert close(logits_of(dequantized), logits_of(folded))
    if variant != "int2":  # codes of 2 bits are stored as ones of 4
        assert size_of(dequantized) <= 1.05 * size_of(folded)
    encoder, decoder = (stored_graph(dequantized, part) for part in ("encoder", "decoder"))
    types = {tensor.name: tensor.data_type for tensor in encoder.initializer}
    cast = {types[node.input[0]] for node in encoder.node if node.op_type == "Cast" and node.input[0] in types}
    assert cast <= {onnx.TensorProto.FLOAT16}, "onnxruntime-web casts no codes"
    assert "DequantizeLinear" in {node.op_type for node in encoder.node}
    assert "MatMulNBits" not in {node.op_type for node in encoder.node}
    assert "MatMulNBits" in {node.op_type for node in decoder.node}
    assert "DequantizeLinear" not in {node.op_type for node in decoder.node}


def test_no_input_may_be_left_out(pair: tuple[Converted, Converted]) -> None:
    unpacked = pair[1]
    described = unpacked.device_model.description()["functions"]
    for part, function in described.items():
        session = onnxruntime.InferenceSession(unpacked.device_model.path / f"{part}.onnx")
        assert session.get_overridable_initializers() == []
        assert {value.name for value in session.get_inputs()} == function["inputs"].keys()
        assert not any("optional" in value for value in function["inputs"].values())
    assert {"logits_to_keep", "image_features"} <= described["decoder"]["inputs"].keys()


SCRIPT = """
import * as ort from 'onnxruntime-web'
import {readFileSync} from 'node:fs'
const [, , folder, given] = process.argv
const {ids, rows, width, layers, heads, size} = JSON.parse(readFileSync(given))
ort.env.wasm.numThreads = 1
const [graph, data] = ['decoder.onnx', 'decoder.onnx.data']
    .map(name => new Uint8Array(readFileSync(`${folder}/${name}`)))
const session = await ort.InferenceSession.create(graph,
    {executionProviders: ['wasm'], externalData: [{path: 'decoder.onnx.data', data}], enableProfiling: true})
const long = (list, shape) => new ort.Tensor('int64', BigInt64Array.from(list, BigInt), shape)
const feeds = {
    input_ids: long(ids, [1, ids.length]),
    attention_mask: long(ids.map(() => 1), [1, ids.length]),
    logits_to_keep: long([0], [1]),
    image_features: new ort.Tensor('float32', Float32Array.from(rows), [1, ids.length, width]),
}
for (let layer = 0; layer < layers; layer++) {
    for (const part of ['key', 'value']) {
        const name = `past_key_values.${layer}.${part}`
        feeds[name] = new ort.Tensor('float32', new Float32Array(0), [1, heads, 0, size])
    }
}
const {logits} = await session.run(feeds)
session.endProfiling()
console.log('logits ' + JSON.stringify([...logits.data]))
"""


@pytest.mark.parametrize("variant", ["int4", "int2"])
def test_in_onnxruntime_web_too(tmp_path: Path, variant: str) -> None:
    """The same numbers, and what runs are products of float weights: the profile of a run names every operator."""
    sdk_or_skip()  # which installs the packages
    if not (WEB / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("mobile/web's packages are not installed")
    toy = converted(tmp_path / "toy", device=DEVICE, **VARIANTS[variant])
    (tmp_path / "node_modules").symlink_to(WEB / "node_modules")
    (tmp_path / "run.mjs").write_text(SCRIPT, encoding="utf-8")
    ids, rows = prompt()
    description = toy.device_model.description()
    given = {
        "ids": ids,
        "rows": rows.reshape(-1).tolist(),
        "width": rows.shape[1],
        "layers": description["layers"],
        "heads": description["kv_heads"],
        "size": description["head_dim"],
    }
    (tmp_path / "given.json").write_text(json.dumps(given), encoding="utf-8")
    command = ["node", "run.mjs", str(toy.device_model.path), "given.json"]
    lines = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    (said,) = [line for line in lines if line.startswith("logits ")]
    logits = np.array(json.loads(said.removeprefix("logits ")), np.float32).reshape(len(ids), -1)
    assert close(logits, logits_of(toy), tolerance=1e-4)
    events = [json.loads(line.rstrip(",")) for line in lines if line.startswith("{")]
    ran = [event["args"]["op_name"] for event in events if event.get("cat") == "Node" and "op_name" in event["args"]]
    assert ran.count("MatMul") == 2 * 4 + 1 and "MatMulNBits" not in ran and ran.count("Sub") <= 2
