"""What ONNX Runtime computes from the lowered files, held against torch with the same dequantized weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipelines.errors import LoweringError
from stages.artifacts import QuantizedModel
from stages.lowering.onnx import lower_onnx
from stages.quantizers.store import StoreWriter
from stages.runtimes.generate import generate, prefill
from tests.converted import CONTEXT, Converted, converted
from tests.toy import toy_checkpoint

PROJECT = Path(__file__).parents[2]
IMAGE, HIDDEN = 258, 64
VARIANTS = {
    "fp16": {"bits": 0, "embeddings": 0, "convolutions": 0},
    "fp16-tied": {"bits": 0, "embeddings": 0, "convolutions": 0, "tied": True},
    "int4": {"bits": 4},
    "int4-symmetric-tied": {"bits": 4, "embeddings": 4, "convolutions": 4, "symmetric": True, "tied": True},
    "int8-per-channel-tied": {"bits": 8, "group_size": 0, "tied": True},
    "int2": {"bits": 2, "embeddings": 2, "convolutions": 2},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def toy(request, tmp_path_factory) -> Converted:
    return converted(tmp_path_factory.mktemp("toy"), **request.param)


def prompt(count: int = 20) -> tuple[list[int], np.ndarray]:
    random = np.random.default_rng(0)
    ids = random.integers(0, 256, count)
    ids[2:7] = IMAGE
    return ids.tolist(), random.standard_normal((count, HIDDEN)).astype(np.float32)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> bool:
    return float(np.abs(found - expected).max()) <= tolerance * float(np.abs(expected).max())


def test_logits_are_those_of_torch_with_the_same_weights(toy):
    ids, rows = prompt()
    logits = toy.session.step(ids, rows, 0, toy.session.start())
    assert close(logits, toy.torch_logits(ids, rows))


def test_features_are_those_of_torch_with_the_same_weights(toy):
    pixels = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = toy.model.model().encode(torch.from_numpy(pixels))[0].numpy()
    assert close(toy.session.encode(pixels), expected)


def test_prefill_at_once_in_chunks_and_token_by_token_agree(toy):
    ids, rows = prompt()
    at_once = toy.session.step(ids, rows, 0, toy.session.start())
    for chunk in (1, 7):
        cache = toy.session.start()
        steps = [
            toy.session.step(ids[at : at + chunk], rows[at : at + chunk], at, cache) for at in range(0, len(ids), chunk)
        ]
        assert close(np.concatenate(steps), at_once)


def test_greedy_answer_is_that_of_torch(toy):
    ids, rows = prompt(12)
    answer = generate(toy.session, ids, rows[2:7], end_id=-1, max_new_tokens=8)
    full = [*ids, *answer]
    spread = np.zeros((len(full), HIDDEN), np.float32)
    spread[2:7] = rows[2:7]
    chosen = toy.torch_logits(full, spread).argmax(-1)[len(ids) - 1 : -1]
    assert answer == chosen.tolist()


def test_a_step_back_overwrites(toy):
    ids, rows = prompt()
    cache = toy.session.start()
    prefill(toy.session, cache, ids, rows)
    again = toy.session.step(ids[8:], rows[8:], 8, cache)
    assert close(again, toy.torch_logits(ids, rows)[8:])


def test_past_may_also_grow_from_nothing(toy):
    session = onnxruntime.InferenceSession(toy.device_model.path / "decoder.onnx")
    ids, rows = prompt()
    past = {
        value.name: np.zeros((1, 1, 0, 32), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values")
    }
    results = []
    for start, end in ((0, 9), (9, 10), (10, 20)):
        inputs = {"input_ids": np.array([ids[start:end]]), "image_features": rows[None, start:end]}
        logits, *present = session.run(None, {**inputs, "attention_mask": np.ones((1, end), np.int64), **past})
        past = dict(zip(past, present, strict=True))
        results.append(logits[0])
    assert past["past_key_values.0.key"].shape == (1, 1, 20, 32)
    assert close(np.concatenate(results), toy.torch_logits(ids, rows))


def test_the_files_weigh_what_the_bits_say(toy):
    found = sum(path.stat().st_size for path in toy.device_model.path.glob("*.data"))
    tables = CONTEXT * 32 * 4  # cosines and sines of the rotary embedding
    assert found <= toy.model.store().total_bytes() * 1.1 + tables


def test_rounding_of_inputs_to_int8_changes_little(tmp_path):
    toy = converted(tmp_path, accuracy_level=4)
    ids, rows = prompt()
    logits = toy.session.step(ids, rows, 0, toy.session.start())
    assert close(logits, toy.torch_logits(ids, rows), tolerance=0.02)


def test_decoder_is_made_of_fused_operators(tmp_path):
    toy = converted(tmp_path, tied=True, embeddings=4)
    nodes = onnx.load(toy.device_model.path / "decoder.onnx", load_external_data=False).graph.node
    counts = {name: sum(node.op_type == name for node in nodes) for name in {node.op_type for node in nodes}}
    assert counts["GroupQueryAttention"] == 2
    assert counts["SkipSimplifiedLayerNormalization"] == 4
    assert counts["MatMulNBits"] == 2 * 4 + 1  # query, key and value are one product; gate and up are one
    assert counts["GatherBlockQuantized"] == 1
    assert not counts.keys() & {"RotaryEmbedding", "Transpose", "MatMul", "Gather"}


def test_a_tied_table_is_stored_once(tmp_path):
    toy = converted(tmp_path, tied=True)
    initializers = onnx.load(toy.device_model.path / "decoder.onnx", load_external_data=False).graph.initializer
    places = [
        {entry.key: entry.value for entry in tensor.external_data}["offset"]
        for tensor in initializers
        if tensor.name.startswith("text.embed_tokens.weight.codes")
    ]
    assert len(places) == 2 and len(set(places)) == 1


def test_model_json_describes_what_the_runtime_sees(toy):
    description = toy.device_model.description()
    assert description["runtime"] == "onnxruntime" and description["context"] == CONTEXT
    for name, function in description["functions"].items():
        session = onnxruntime.InferenceSession(toy.device_model.path / description["files"][name])
        inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
        for kind, values in (("inputs", inputs), ("outputs", session.get_outputs())):
            assert {value.name: value.shape for value in values} == {
                key: entry["shape"] for key, entry in function[kind].items()
            }


def test_same_bytes_in_any_process_and_folder_and_no_path_in_them(tmp_path):
    here, there = tmp_path / "here", tmp_path / "elsewhere/home"
    there.mkdir(parents=True)
    converted(here)
    script = "import sys, pathlib; from tests.converted import converted; converted(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "HOME": str(there), "PYTHONHASHSEED": "7", "PYTHONPATH": str(PROJECT)}
    environment["OMP_NUM_THREADS"] = "2"
    subprocess.run([sys.executable, "-c", script, str(there)], cwd=there, env=environment, check=True)
    names = {path.name for path in (here / "device").iterdir()}
    assert {"encoder.onnx", "decoder.onnx.data", "model.json", "tokenizer.json", "preprocessing.json"} <= names
    for name in names:
        content = (here / "device" / name).read_bytes()
        assert content == (there / "device" / name).read_bytes(), name
        assert not any(str(path).encode() in content for path in (tmp_path, PROJECT, Path.home())), name


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (
            lambda store, name: store.add_palette(
                name, (64, 64), 4, np.zeros((64, 64), np.uint8), np.zeros((1, 16), np.float16)
            ),
            "palette of 4 bits",
        ),
        (
            lambda store, name: store.add_affine(
                name, (64, 64), 4, np.zeros((64, 64), np.uint8), np.ones((64, 8), np.float16), None
            ),
            "groups of 8",
        ),
        (
            lambda store, name: store.add_affine(
                name, (64, 64), 3, np.zeros((64, 64), np.uint8), np.ones((64, 2), np.float16), None
            ),
            "affine, 3 bits",
        ),
    ],
)
def test_a_format_that_onnx_runtime_cannot_hold_is_refused(tmp_path, add, message):
    checkpoint = toy_checkpoint(tmp_path / "checkpoint")
    name = "text.layers.1.self_attn.q_proj.weight"
    (tmp_path / "store").mkdir()
    with checkpoint.tensors() as tensors, StoreWriter(tmp_path / "store") as store:
        for other in tensors:
            if other != name:
                store.add_float(other, tensors[other].numpy())
        add(store, name)
    with pytest.raises(LoweringError) as error:
        model = QuantizedModel(tmp_path / "store")
        lower_onnx(checkpoint.config(), model.store(), tmp_path, context=CONTEXT, accuracy_level=1)
    assert name in error.value.message and message in error.value.message
    assert error.value.hint
