"""What the reference executor computes from the lowered packages, held against torch with the same dequantized weights;
and the packages themselves, held against coremltools and against what the store promised."""

import hashlib
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import coremltools
import numpy as np
import pytest
import torch
from coremltools.converters.mil.frontend.milproto.load import load as read_program
from coremltools.proto import MIL_pb2

from pipelines.errors import LoweringError, StageError
from stages.artifacts import DeviceModel, QuantizedModel
from stages.lowering.coreml import lower_coreml
from stages.lowering.coreml.compact import operation_name
from stages.lowering.coreml.verify import verify_package
from stages.lowering.graph import TABLES
from stages.models.qwen2 import MaskedContext
from stages.quantizers.store import StoreWriter
from stages.runtimes.coreml_reference import CoreMLSession
from stages.runtimes.generate import generate, prefill
from tests.rounded import rounded
from tests.toy import toy_checkpoint

PROJECT = Path(__file__).parents[2]
CONTEXT, CHUNK, HIDDEN, IMAGE = 64, 8, 64, 258
VARIANTS = {
    "float16": {"bits": 0, "embeddings": 0, "convolutions": 0},
    "int8": {"bits": 8, "group_size": 0},
    "int4": {"bits": 4},
    "int4-symmetric-tied": {"bits": 4, "embeddings": 4, "convolutions": 4, "symmetric": True, "tied": True},
    "palette": {"palette": 4},
}


@dataclass
class Converted:
    name: str
    model: QuantizedModel
    device_model: DeviceModel

    @cached_property
    def session(self) -> CoreMLSession:
        return CoreMLSession(self.device_model)

    def package(self, part: str) -> Path:
        return self.device_model.path / f"{part}.mlpackage"

    def torch_logits(self, ids: list[int], rows: np.ndarray) -> np.ndarray:
        """(N, V) of the dequantized model, all tokens at once."""
        model, count = self.model.model(), len(ids)
        context = MaskedContext(torch.arange(count), torch.ones(count, count).tril().bool(), model.config.text)
        with torch.no_grad():
            embedded = model.embed(torch.tensor([ids]), torch.from_numpy(rows)[None])
            return model.text(embedded, context)[0].numpy()


def converted(path: Path, name: str) -> Converted:
    formats = dict(VARIANTS[name])
    checkpoint = toy_checkpoint(path / "checkpoint", tied=bool(formats.pop("tied", False)))
    if "palette" in formats:
        model = palettized(rounded(checkpoint, path / "rounded"), path / "quantized")
    else:
        model = rounded(checkpoint, path / "quantized", **formats)
    (path / "device").mkdir()
    device_model = DeviceModel(path / "device")
    sizes = {"context": CONTEXT, "prefill_chunk": CHUNK}
    device_model.write_json("model.json", lower_coreml(model.config(), model.store(), device_model.path, **sizes))
    return Converted(name, model, device_model)


def palettized(model: QuantizedModel, path: Path, group: int = 24) -> QuantizedModel:
    """The same tensors as 4-bit palettes of evenly spaced quantiles; 24 rows share one: some last groups are short."""
    path.mkdir()
    store = model.store()
    with StoreWriter(path) as writer:
        for name in store.names():
            dense, form = store.dense(name), store.format(name)
            if form.format == "float":
                writer.add_float(name, dense.astype(np.float16))
                continue
            blocks = np.array_split(dense.reshape(form.rows, -1), range(group, form.rows, group))
            palettes = [np.quantile(block, (np.arange(16) + 0.5) / 16).astype(np.float16) for block in blocks]
            codes = [
                np.abs(block[..., None] - palette).argmin(-1) for block, palette in zip(blocks, palettes, strict=True)
            ]
            writer.add_palette(
                name, form.shape, 4, np.concatenate(codes).astype(np.uint8), np.stack(palettes), min(group, form.rows)
            )
    for name in ("config.json", "tokenizer.json", "preprocessing.json"):
        (path / name).write_bytes((model.path / name).read_bytes())
    return QuantizedModel(path)


@pytest.fixture(scope="module", params=VARIANTS)
def toy(request, tmp_path_factory) -> Converted:
    return converted(tmp_path_factory.mktemp("toy"), request.param)


@pytest.fixture(scope="module")
def palette(tmp_path_factory) -> Converted:
    return converted(tmp_path_factory.mktemp("palette"), "palette")


def prompt(count: int = 20) -> tuple[list[int], np.ndarray]:
    random = np.random.default_rng(0)
    ids = random.integers(0, 256, count)
    ids[2:7] = IMAGE
    return ids.tolist(), random.standard_normal((count, HIDDEN)).astype(np.float16).astype(np.float32)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 4e-3) -> bool:
    """Within a few units of float16's precision (1e-3) of the largest value."""
    return float(np.abs(found - expected).max()) <= tolerance * float(np.abs(expected).max())


def test_features_are_those_of_torch_with_the_same_weights(toy):
    pixels = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = toy.model.model().encode(torch.from_numpy(pixels))[0].numpy()
    assert close(toy.session.encode(pixels), expected)


def test_prefill_in_chunks_and_token_by_token_are_what_torch_computes_at_once(toy):
    ids, rows = prompt()
    expected = toy.torch_logits(ids, rows)
    in_chunks = prefill(toy.session, toy.session.start(), ids, rows)
    cache = toy.session.start()
    one_by_one = np.concatenate([toy.session.step([ids[at]], rows[at : at + 1], at, cache) for at in range(len(ids))])
    assert close(in_chunks, expected) and close(one_by_one, expected)


def test_greedy_answer_is_that_of_torch(toy):
    ids, rows = prompt(12)
    answer = generate(toy.session, ids, rows[2:7], end_id=-1, max_new_tokens=8)
    full = [*ids, *answer]
    spread = np.zeros((len(full), HIDDEN), np.float32)
    spread[2:7] = rows[2:7]
    chosen = toy.torch_logits(full, spread).argmax(-1)[len(ids) - 1 : -1]
    assert answer == chosen.tolist()


def test_a_cache_may_step_back_and_be_filled_to_its_end(palette):
    ids, rows = prompt(CONTEXT - 3)  # the last chunk, padded, would leave the context
    cache = palette.session.start()
    prefill(palette.session, cache, ids, rows)
    again = prefill(palette.session, cache, ids[40:], rows[40:], 40)
    assert close(again, palette.torch_logits(ids, rows)[40:])
    with pytest.raises(StageError, match="context of 64"):
        palette.session.step([1, 2], rows[:2], CONTEXT - 1, cache)


def test_large_activations_do_not_overflow(palette):
    ids, rows = prompt(8)
    large = rows * 3000  # squares are a hundred times beyond float16
    logits = palette.session.step(ids, large, 0, palette.session.start())
    assert close(logits, palette.torch_logits(ids, large), 1e-2)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_coremltools_reads_the_program_back_and_infers_its_types(toy, part):
    package = toy.package(part)
    spec = coremltools.utils.load_spec(str(package))
    program = read_program(spec, spec.specificationVersion, str(package / "Data/com.apple.CoreML/weights"))
    assert spec.specificationVersion == coremltools.target.iOS18
    functions = {"encoder": {"main"}, "decoder": {"prefill", "decode"}}[part]
    assert set(program.functions) == functions
    for name, function in program.functions.items():
        described = toy.device_model.description()["functions"]["encoder" if name == "main" else name]
        assert {out.name: tuple(out.shape) for out in function.outputs} == {
            key: tuple(entry["shape"]) for key, entry in described["outputs"].items()
        }


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_weights_are_constexpr_operations_of_the_promised_bits(toy, part):
    spec = coremltools.utils.load_spec(str(toy.package(part)))
    store = toy.model.store()
    quantized = {name.replace(".", "_"): name for name in store.names() if store.format(name).format != "float"}
    for function in spec.mlProgram.functions.values():
        operations = function.block_specializations[function.opset].operations
        made = {operation_name(op): op for op in operations if op.type.startswith("constexpr_")}
        expected = {key for key, name in quantized.items() if name.startswith("text.") == (part == "decoder")}
        assert set(made) == expected
        for key, operation in made.items():
            codes = operation.inputs["indices" if "lut" in operation.type else "data"].arguments[0].value
            kind = MIL_pb2.DataType.Name(codes.type.tensorType.dataType)
            form = store.format(quantized[key])
            assert kind == f"{'' if form.symmetric else 'U'}INT{form.bits}"
            assert math.prod(d.constant.size for d in codes.type.tensorType.dimensions) == math.prod(form.shape)
            assert codes.WhichOneof("value") == "blobFileValue"


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_constant_is_said_once_and_only_weights_have_long_names(toy, part):
    spec = coremltools.utils.load_spec(str(toy.package(part)))
    weights = {name.replace(".", "_") for name in toy.model.store().names()}
    for function in spec.mlProgram.functions.values():
        operations = function.block_specializations[function.opset].operations
        values = [
            op.attributes["val"].SerializeToString(deterministic=True)
            for op in operations
            if op.type == "const" and operation_name(op) not in weights
        ]
        assert len(values) == len(set(values))
        made = [output.name for op in operations for output in op.outputs]
        features = {feature.name for feature in function.inputs} | {"features", "logits"}
        assert len(made) == len(set(made)) and all(name in features or len(name) < 5 for name in made)
        assert all(operation_name(op) in {*weights, *features} or len(operation_name(op)) < 5 for op in operations)


def test_features_have_names_shapes_and_descriptions_everywhere(palette):
    description = palette.device_model.description()
    assert description["runtime"] == "coreml" and description["prefill_chunk"] == CHUNK
    decoder = coremltools.utils.load_spec(str(palette.package("decoder"))).description
    encoder = coremltools.utils.load_spec(str(palette.package("encoder"))).description
    assert decoder.defaultFunctionName == "prefill"
    described = {"encoder": encoder, **{function.name: function for function in decoder.functions}}
    assert set(described) == {"encoder", "prefill", "decode"} == set(description["functions"])
    for name, function in described.items():
        expected = description["functions"][name]
        for kind, features in (("inputs", function.input), ("outputs", function.output), ("states", function.state)):
            assert {feature.name for feature in features} == set(expected[kind])
            assert all(feature.shortDescription for feature in features)
            for feature in features:
                array = feature.type.stateType.arrayType if kind == "states" else feature.type.multiArrayType
                assert list(array.shape) == expected[kind][feature.name]["shape"]
    assert set(description["functions"]["decode"]["states"]) == {"key_cache", "value_cache"}


def test_same_bytes_again_in_this_process(palette, tmp_path):
    assert digests(converted(tmp_path, "palette").device_model.path) == digests(palette.device_model.path)


@pytest.mark.slow  # another process imports coremltools again
def test_same_bytes_in_any_process_and_folder_and_no_path_in_them(palette, tmp_path):
    script = (
        "import sys; from pathlib import Path; from tests.stages.test_coreml import converted; "
        "converted(Path(sys.argv[1]), 'palette')"
    )
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONHASHSEED": "7",
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": str(PROJECT),
    }
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    folders = (palette.device_model.path, tmp_path / "device")
    found = [digests(folder) for folder in folders]
    assert found[0] == found[1] and len(found[0]) == 3 * 2 + 1
    for folder in folders:
        content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert not any(str(root).encode() in content for root in (folder.parent, PROJECT, Path.home()))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_weight_that_was_made_dense_is_caught(palette, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("stages.lowering.coreml.lower.verify_package", lambda *arguments: seen.append(arguments))
    lower_coreml(palette.model.config(), palette.model.store(), tmp_path, context=CONTEXT, prefill_chunk=CHUNK)
    path, spec, builders, bank = seen[1]
    path = tmp_path / path.name
    verify_package(path, spec, builders, bank)
    block = spec.mlProgram.functions["decode"].block_specializations["CoreML8"]
    victim = next(operation for operation in block.operations if operation.type.startswith("constexpr_"))
    victim.type = "const"
    with pytest.raises(LoweringError, match=r"'decode'.*saved as const, expected constexpr_lut_to_dense"):
        verify_package(path, spec, builders, bank)
    victim.type = "constexpr_lut_to_dense"
    with open(next(path.rglob("weight.bin")), "ab") as file:
        file.write(bytes(200_000))
    with pytest.raises(LoweringError, match="stored densely or twice"):
        verify_package(path, spec, builders, bank)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [96, 100, 50])
def test_a_head_in_parts_gives_the_same_bits(tmp_path, tied, width):
    checkpoint = toy_checkpoint(tmp_path / "checkpoint", tied=tied)
    model = rounded(checkpoint, tmp_path / "quantized", bits=4, embeddings=4)
    logits, sizes = [], []
    for name, head_width in (("whole", 0), ("parts", width)):
        (tmp_path / name).mkdir()
        device_model = DeviceModel(tmp_path / name)
        options = {"context": CONTEXT, "prefill_chunk": CHUNK, "head_width": head_width}
        device_model.write_json("model.json", lower_coreml(model.config(), model.store(), tmp_path / name, **options))
        session = CoreMLSession(device_model)
        logits.append(prefill(session, session.start(), *prompt(12)))
        sizes.append(next((tmp_path / name).glob("decoder.mlpackage/Data/*/weights/weight.bin")).stat().st_size)
        spec = coremltools.utils.load_spec(str(tmp_path / name / "decoder.mlpackage"))
        block = spec.mlProgram.functions["decode"].block_specializations["CoreML8"]
        wide = [sizes_of(output) for op in block.operations if op.type == "linear" for output in op.outputs]
        assert max(shape[-1] for shape in wide) <= (max(width, 96) if head_width else 288)  # 96: the feed-forward's
    assert np.array_equal(logits[0], logits[1])
    assert sizes[1] <= sizes[0] + 8 * 128  # records of the parts, and no second table


def sizes_of(value) -> list[int]:
    return [dimension.constant.size for dimension in value.type.tensorType.dimensions]


def test_weight_bin_is_what_coremltools_writes(tmp_path):
    from coremltools.libmilstoragepython import _BlobStorageWriter

    from stages.lowering.coreml.blob import BlobWriter
    from stages.quantizers.packing import pack_bits

    numbers = np.arange(13)
    writer = _BlobStorageWriter(str(tmp_path / "theirs.bin"))
    with BlobWriter(tmp_path / "ours.bin") as blob:
        for bits in (1, 2, 3, 4, 6):
            codes = (numbers % (1 << bits)).astype(np.uint8)
            ours = blob.add(f"uint{bits}", (13,), pack_bits(codes, bits))
            assert ours == getattr(writer, f"write_uint{bits}_data")(codes)
        signed = (numbers % 16).astype(np.uint8)
        assert blob.add("int4", (13,), pack_bits(signed, 4)) == writer.write_int4_data((signed ^ 8).view(np.int8) - 8)
        for kind, array in (("fp32", numbers.astype(np.float32)), ("int32", numbers.astype(np.int32))):
            theirs = writer.write_float_data if kind == "fp32" else writer.write_int32_data
            assert blob.add(kind, (13,), array) == theirs(array)
        half = numbers.astype(np.float16)
        assert blob.add("fp16", (13,), half) == writer.write_fp16_data(half.view(np.uint16))
    del writer, theirs  # the file is finished when nothing refers to its writer
    assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()


def test_a_text_model_has_a_decoder_alone(tmp_path):
    from dataclasses import replace

    checkpoint = toy_checkpoint(tmp_path / "checkpoint")
    model = rounded(checkpoint, tmp_path / "quantized", bits=8)
    config = replace(model.config(), vision=None, image_token_id=None)
    description = lower_coreml(config, model.store(), tmp_path / "out", context=CONTEXT, prefill_chunk=CHUNK)
    assert set(description["functions"]) == {"prefill", "decode"}
    assert set(description["functions"]["decode"]["inputs"]) == {"input_ids", "position"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["decoder.mlpackage"]


def test_what_fails_leaves_nothing(palette, tmp_path, monkeypatch):
    def fail(*arguments):
        raise LoweringError("no")

    monkeypatch.setattr("stages.lowering.coreml.lower.verify_package", fail)
    with pytest.raises(LoweringError):
        lower_coreml(palette.model.config(), palette.model.store(), tmp_path, context=CONTEXT, prefill_chunk=CHUNK)
    assert not list(tmp_path.iterdir())


def test_an_operator_without_a_lowering_is_named_with_its_line(palette, tmp_path, monkeypatch):
    monkeypatch.delitem(TABLES["coreml"].emitters, "aten.silu.default")
    with pytest.raises(LoweringError) as error:
        lower_coreml(palette.model.config(), palette.model.store(), tmp_path, context=CONTEXT, prefill_chunk=CHUNK)
    assert "aten.silu.default" in error.value.message and "stages/models/qwen2.py" in error.value.message
    assert "register" in error.value.hint


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (
            lambda store, name: store.add_affine(
                name, (64, 64), 3, np.zeros((64, 64), np.uint8), np.ones((64, 2), np.float16), None
            ),
            "affine of 3 bits",
        ),
        (lambda store, name: store.add_float(name, np.full((64, 64), 70000.0, np.float32)), "beyond float16"),
        (lambda store, name: store.add_float(name, np.ones((64, 32), np.float16)), "in the captured graph"),
    ],
)
def test_what_core_ml_cannot_hold_is_refused(tmp_path, add, message):
    checkpoint = toy_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "store").mkdir()
    name = "text.layers.1.self_attn.q_proj.weight"
    with checkpoint.tensors() as tensors, StoreWriter(tmp_path / "store") as store:
        for other in tensors:
            if other != name:
                store.add_float(other, tensors[other].numpy())
        add(store, name)
    with pytest.raises(LoweringError) as error:
        model = QuantizedModel(tmp_path / "store")
        lower_coreml(checkpoint.config(), model.store(), tmp_path, context=CONTEXT, prefill_chunk=CHUNK)
    assert name in error.value.message and message in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(("context", "chunk", "hint"), [(100, 8, "context=128"), (64, 65, "prefill_chunk=64")])
def test_impossible_sizes_are_refused_with_the_nearest_possible(palette, tmp_path, context, chunk, hint):
    with pytest.raises(LoweringError) as error:
        lower_coreml(palette.model.config(), palette.model.store(), tmp_path, context=context, prefill_chunk=chunk)
    assert hint in error.value.hint
