"""Every format that Core ML holds, as the reference executor and coremltools itself read it from the saved package."""

import shutil
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var, types
from coremltools.optimize._utils import pack_elements_into_bits, restore_elements_from_packed_bits
from coremltools.proto import Model_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import LoweringError
from stages.artifacts import DeviceModel, QuantizedModel
from stages.devices.neural_engine import inspect
from stages.lowering.coreml import lower_coreml, supported_formats
from stages.lowering.coreml import weights as lowering
from stages.lowering.coreml.builder import FunctionBuilder, FunctionSpec
from stages.lowering.coreml.package import save_package
from stages.lowering.coreml.verify import verify_package
from stages.lowering.coreml.weights import WeightBank
from stages.lowering.graph import Weight
from stages.models.qwen2 import MaskedContext
from stages.quantizers.packing import BIT_WIDTHS, pack_bits, unpack_bits
from stages.quantizers.store import QuantizedStore, StoreWriter
from stages.runtimes.coreml_reference import CoreMLSession, MLProgram
from tests.toy import toy_checkpoint
from tests.weights import Described, described, write

HELD = {"affine": (4, 8), "palette": (1, 2, 3, 4, 6, 8)}
Rows = tuple[int, int] | None


def in_core_ml(**changes: object) -> st.SearchStrategy[Described]:
    return described(bits=HELD, floats=("float16",), **changes)


def stored(path: Path, weights: dict[str, Described]) -> QuantizedStore:
    path.mkdir(exist_ok=True)
    with StoreWriter(path) as writer:
        for name, weight in weights.items():
            write(writer, name, weight)
    return QuantizedStore.open(path)


def packaged(
    path: Path, store: QuantizedStore, rows: dict[str, list[Rows]] | None = None, dtype: str = "float16"
) -> Path:
    """A package whose outputs are the store's weights (some rows of them), held against the store as a build does."""
    wanted = [(name, part) for name in store.names() for part in (rows or {}).get(name, [None])]
    features = {}
    for index, (name, part) in enumerate(wanted):
        shape = store.format(name).shape
        features[f"y{index}"] = ((part[1] - part[0], *shape[1:]) if part else shape, dtype, "")
    bank = WeightBank(store)
    spec = FunctionSpec("main", "weights", {"x": ((1,), "float16", "")}, features)
    with FunctionBuilder(spec, bank) as builder:
        builder.dtype = dtype
        shapes = {name: store.format(name).shape for name in store.names()}
        builder.finish([mb.identity(x=builder.weight(Weight(name, shapes[name]), part)) for name, part in wanted])
    package = path / "weights.mlpackage"
    verify_package(package, save_package(package, [builder], bank), [builder], bank)
    return package


def executed(package: Path) -> list[np.ndarray]:
    """What the reference executor reads, as float32."""
    outputs = MLProgram(package).function().predict({"x": np.zeros(1, np.float16)})
    return [outputs[f"y{index}"].astype(np.float32) for index in range(len(outputs))]


def read_by_coremltools(package: Path) -> list[np.ndarray]:
    """What coremltools decompresses, from its own reading of the program and of weight.bin."""
    data = package / "Data/com.apple.CoreML"
    spec = Model_pb2.Model.FromString((data / "model.mlmodel").read_bytes())
    program = load(spec, spec.specificationVersion, str(data / "weights"))
    outputs = {output.name: output.op.x for output in program.functions["main"].outputs}
    values = [outputs[f"y{index}"] for index in range(len(outputs))]
    return [np.asarray(x.op.materialized_val_inference() if x.val is None else x.val) for x in values]


def half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_packing_is_that_of_coremltools(bits: int) -> None:
    for count in (1, 7, 8, 9, 1001):
        codes = np.random.default_rng(count).integers(0, 1 << bits, count).astype(np.uint8)
        packed = pack_elements_into_bits(codes, bits)
        assert (pack_bits(codes, bits) == packed).all()
        assert (unpack_bits(packed, bits, count) == restore_elements_from_packed_bits(packed, bits, count)).all()


@given(st.lists(in_core_ml(), min_size=1, max_size=6), st.booleans())
@settings(deadline=None, max_examples=50)
def test_packages_carry_exactly_the_bits_of_the_store(
    tmp_path_factory: pytest.TempPathFactory, weights: list[Described], stand_ins: bool
) -> None:
    path = tmp_path_factory.mktemp("package")
    store = stored(path, {f"w{index}": weight for index, weight in enumerate(weights)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "_SMALL", 16 if stand_ins else 4096)
        package = packaged(path, store)
    for weight, executor, coremltools in zip(weights, executed(package), read_by_coremltools(package), strict=True):
        expected = half(weight.meaning()).reshape(weight.shape)
        np.testing.assert_array_equal(executor, expected)
        np.testing.assert_array_equal(coremltools.astype(np.float32), expected)


@given(in_core_ml(), st.data())
@settings(deadline=None, max_examples=40)
def test_parts_of_the_rows_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, weight: Described, data: st.DataObject
) -> None:
    """As the head is divided; a part without a kept weight has no form."""
    path = tmp_path_factory.mktemp("package")
    store = stored(path, {"w": weight})
    middle = weight.vector * data.draw(st.integers(1, weight.rows // weight.vector))
    parts = [(first, last) for first, last in [(0, middle), (middle, weight.rows)] if first < last]
    if not all(weight.kept()[first:last].any() for first, last in parts):
        with pytest.raises(LoweringError, match="keeps no weight of rows"):
            packaged(path, store, {"w": parts})
        return
    found = np.concatenate(executed(packaged(path, store, {"w": parts})))
    np.testing.assert_array_equal(found, half(weight.meaning()).reshape(weight.shape))


@given(in_core_ml())
@settings(deadline=None, max_examples=20)
def test_layers_kept_in_float32_are_not_rounded(tmp_path_factory: pytest.TempPathFactory, weight: Described) -> None:
    path = tmp_path_factory.mktemp("package")
    package = packaged(path, stored(path, {"w": weight}), dtype="float32")
    np.testing.assert_array_equal(executed(package)[0], weight.meaning().reshape(weight.shape))


KINDS = (
    "vectors",
    "scaled",
    "sparse palette",
    "sparse scaled",
    "sparse int4",
    "sparse int8",
    "sparse float16",
    "affine",
)


def in_every_format(weight: np.ndarray, kind: str, random: np.random.Generator) -> Described:
    """A weight (out, in, ...) of a model, roughly, in one of KINDS."""
    matrix = weight.reshape(len(weight), -1)
    mask = np.abs(matrix) > np.median(np.abs(matrix)) if "sparse" in kind else None
    if kind == "sparse float16":
        return Described("float", weight.shape, values=weight.astype(np.float16), mask=mask)
    if kind in ("affine", "sparse int4", "sparse int8"):
        bits = 4 if kind.endswith("4") else 8
        scales = (np.abs(matrix).max(1, keepdims=True) / ((1 << (bits - 1)) - 1)).astype(np.float16)
        codes = (np.round(matrix / scales.astype(np.float32)) + (1 << (bits - 1))).astype(np.uint8)
        return Described("affine", weight.shape, bits, matrix.shape[1], codes=codes, scales=scales, mask=mask)
    scales = np.abs(matrix).max(1).astype(np.float16) if "scaled" in kind else None
    wanted = matrix if scales is None else matrix / scales[:, None]
    vector = 4 if kind == "vectors" else 1
    vectors = wanted.reshape(-1, vector, wanted.shape[1]).transpose(0, 2, 1)
    entries = random.choice(vectors.reshape(-1, vector), 16).astype(np.float16)
    codes = np.stack([((row[:, None] - entries) ** 2).sum(-1).argmin(-1) for row in vectors]).astype(np.uint8)
    palette = entries[None] if vector > 1 else entries[None, :, 0]
    return Described(
        "palette", weight.shape, 4, 0, vector, codes=codes, palette=palette, channel_scales=scales, mask=mask
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedModel, DeviceModel]:
    """The toy model with every format in turn, wide convolutions too, and its head in parts."""
    path = tmp_path_factory.mktemp("mixed")
    checkpoint = toy_checkpoint(path / "checkpoint")
    (path / "quantized").mkdir()
    random = np.random.default_rng(0)
    for name in ("config.json", "tokenizer.json", "preprocessing.json"):
        shutil.copyfile(checkpoint.path / name, path / "quantized" / name)
    with checkpoint.tensors() as tensors, StoreWriter(path / "quantized") as writer:
        for index, name in enumerate(sorted(tensors)):
            weight = tensors[name].float().numpy()
            if weight.ndim == 1 or not name.endswith("weight"):
                writer.add_float(name, weight.astype(np.float16))
            else:
                write(writer, name, in_every_format(weight, KINDS[index % len(KINDS)], random))
    model, device_model = QuantizedModel(path / "quantized"), DeviceModel(path / "device")
    device_model.path.mkdir()
    sizes = {"context": 64, "prefill_chunk": 8, "head_width": 96}
    device_model.write_json("model.json", lower_coreml(model.config(), model.store(), device_model.path, **sizes))
    return model, device_model


def test_a_model_of_every_format_computes_what_torch_does(mixed: tuple[QuantizedModel, DeviceModel]) -> None:
    model, device_model = mixed
    reference, session = model.model(), CoreMLSession(device_model)
    random = np.random.default_rng(1)
    pixels, ids = random.standard_normal((1, 3, 32, 32)).astype(np.float32), random.integers(0, 256, 8)
    context = MaskedContext(torch.arange(8), torch.ones(8, 8).tril().bool(), model.config().text)
    with torch.no_grad():
        features = reference.encode(torch.from_numpy(pixels))[0].numpy()
        embedded = reference.embed(torch.from_numpy(ids[None]), torch.zeros(1, 8, 64))
        logits = reference.text(embedded, context)[0].numpy()
    found = session.step(ids.tolist(), np.zeros((8, 64), np.float32), 0, session.start())
    assert np.abs(session.encode(pixels) - features).max() <= 4e-3 * np.abs(features).max()
    assert np.abs(found - logits).max() <= 4e-3 * np.abs(logits).max()


def test_the_neural_engine_report_names_scaled_palettes(mixed: tuple[QuantizedModel, DeviceModel]) -> None:
    _, device_model = mixed
    findings = [finding for path in device_model.path.glob("*.mlpackage") for finding in inspect(path, "A17 Pro")]
    scaled = {finding.source for finding in findings if finding.rule == "scaled-palette"}
    assert scaled == {"coremltools#2688"}


@given(described(kinds=("affine",), bits={"affine": (2, 3, 6)}))
@settings(deadline=None, max_examples=5)
def test_other_widths_are_refused_with_what_there_is(
    tmp_path_factory: pytest.TempPathFactory, weight: Described
) -> None:
    path = tmp_path_factory.mktemp("package")
    with pytest.raises(LoweringError) as caught:
        packaged(path, stored(path, {"w": weight}))
    assert f"'w' is affine of {weight.bits} bits" in caught.value.message
    assert all(name in caught.value.hint for name in supported_formats())


def test_a_vector_is_not_divided(tmp_path: Path) -> None:
    palette = np.zeros((1, 2, 4), np.float16)
    weight = Described("palette", (8, 3), 1, 0, 4, codes=np.zeros((2, 3), np.uint8), palette=palette)
    with pytest.raises(LoweringError, match="vectors of 4 rows; rows 0 to 5 divide one") as caught:
        packaged(tmp_path, stored(tmp_path, {"w": weight}), {"w": [(0, 6), (6, 8)]})
    assert "multiple of 4" in caught.value.hint


def test_a_product_beyond_float16_is_refused(tmp_path: Path) -> None:
    codes, palette = np.zeros((2, 3), np.uint8), np.array([[300, 0]], np.float16)
    scales = np.array([1, 300], np.float16)
    weight = Described("palette", (2, 3), 1, codes=codes, palette=palette, channel_scales=scales)
    with pytest.raises(LoweringError, match="'w' holds 90000, beyond float16"):
        packaged(tmp_path, stored(tmp_path, {"w": weight}))


def test_a_tensor_that_was_saved_otherwise_is_found(tmp_path: Path) -> None:
    """The check of a saved package sees every link of a chain."""
    mask = np.arange(96).reshape(8, 12) % 3 > 0
    codes = np.random.default_rng(0).integers(0, 16, (8, 12)).astype(np.uint8)
    palette, scales = np.zeros((1, 16), np.float16), np.ones(8, np.float16)
    weight = Described("palette", (8, 12), 4, codes=codes, palette=palette, channel_scales=scales, mask=mask)
    store = stored(tmp_path, {"w": weight})
    bank = WeightBank(store)
    spec = FunctionSpec("main", "weights", {"x": ((1,), "float16", "")}, {"y": ((8, 12), "float16", "")})
    with FunctionBuilder(spec, bank) as builder:
        builder.finish([mb.identity(x=builder.weight(Weight("w", (8, 12))))])
    package = tmp_path / "weights.mlpackage"
    saved = save_package(package, [builder], bank)
    verify_package(package, saved, [builder], bank)
    block = saved.mlProgram.functions["main"].block_specializations["CoreML8"]
    looked_up = next(operation for operation in block.operations if operation.type == "constexpr_lut_to_sparse")
    data = looked_up.inputs["indices_nonzero_data"].arguments[0].value.type.tensorType
    data.dimensions[0].constant.size -= 1
    with pytest.raises(LoweringError, match=r"indices_nonzero_data: 63 of 4 bits.*expected.*: 64 of 4 bits"):
        verify_package(package, saved, [builder], bank)


def palettizer(**settings: object) -> ct.optimize.coreml.OpPalettizerConfig:
    return ct.optimize.coreml.OpPalettizerConfig(mode="kmeans", weight_threshold=1, **settings)


def pruner() -> ct.optimize.coreml.OpMagnitudePrunerConfig:
    return ct.optimize.coreml.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=1)


GROUPS = {"granularity": "per_grouped_channel", "group_size": 8}
COMPRESSORS = {
    "palette": [palettizer(nbits=3)],
    "groups": [palettizer(nbits=2, **GROUPS)],
    "vectors": [palettizer(nbits=4, cluster_dim=4)],
    "vectors in groups": [palettizer(nbits=3, cluster_dim=2, **GROUPS)],
    "sparse": [pruner()],
    "sparse palette": [pruner(), palettizer(nbits=4)],
    "sparse int8": [
        pruner(),
        ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=1),
    ],
    "blocks": [
        ct.optimize.coreml.OpLinearQuantizerConfig(
            mode="linear", dtype="uint4", granularity="per_block", block_size=16, weight_threshold=1
        )
    ],
}


def compressed(configurations: list[object], weight: np.ndarray) -> ct.models.MLModel:
    """x @ weight.T with the weight compressed by coremltools."""

    @mb.program(input_specs=[mb.TensorSpec((32, 32), types.fp16)], opset_version=ct.target.iOS18)
    def program(x):  # type: ignore[no-untyped-def]
        return mb.linear(x=x, weight=weight, name="y")

    model = ct.convert(
        program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True, outputs=[ct.TensorType("y")]
    )
    apply = {
        ct.optimize.coreml.OpPalettizerConfig: ct.optimize.coreml.palettize_weights,
        ct.optimize.coreml.OpMagnitudePrunerConfig: ct.optimize.coreml.prune_weights,
        ct.optimize.coreml.OpLinearQuantizerConfig: ct.optimize.coreml.linear_quantize_weights,
    }
    for index, each in enumerate(configurations):
        config = ct.optimize.coreml.OptimizationConfig(global_config=each)
        joint = {"joint_compression": True} if index else {}
        model = apply[type(each)](model, config, **joint)
    return model


@pytest.mark.parametrize("name", COMPRESSORS)
def test_what_coremltools_compresses_means_the_same_in_the_store(tmp_path: Path, name: str) -> None:
    weight = np.random.default_rng(1).normal(size=(16, 32)).astype(np.float16)
    model = compressed(COMPRESSORS[name], weight)
    model.save(str(tmp_path / "model.mlpackage"))
    data = tmp_path / "model.mlpackage/Data/com.apple.CoreML"
    program = load(model.get_spec(), model.get_spec().specificationVersion, str(data / "weights"))
    operation = next(op for op in program.functions["main"].operations if op.op_type == "linear").weight.op
    expected = operation.materialized_val_inference()
    assert expected.dtype == np.float16 and operation.op_type.startswith("constexpr_")

    identity = np.eye(32, dtype=np.float16)
    found = MLProgram(tmp_path / "model.mlpackage").function().predict({"x": identity})
    np.testing.assert_array_equal(next(iter(found.values())).T, expected.astype(np.float32))

    store = stored(tmp_path / "store", {"w": taken_over(operation)})
    np.testing.assert_array_equal(half(store.dense("w")), expected.astype(np.float32))
    np.testing.assert_array_equal(executed(packaged(tmp_path, store))[0], expected.astype(np.float32))


def taken_over(operation: object) -> Described:
    """coremltools' operations as a weight of the store."""
    kind, inputs = operation.op_type, operation.inputs  # type: ignore[attr-defined]
    if kind == "constexpr_sparse_to_dense":
        inner = inputs["nonzero_data"].op
        if inner.op_type == "const":
            mask = inputs["mask"].val.astype(bool)
            dense = np.zeros(mask.shape, np.float16)
            dense[mask] = inputs["nonzero_data"].val
            return Described("float", mask.shape, values=dense, mask=mask)
        return taken_over(inner)
    if kind.endswith("blockwise_shift_scale"):
        scales = inputs["scale"].val
        data, mask = scattered(inputs, "data", "data_mask", "nonzero_data")
        signed, offset = data.dtype == np.int8, inputs.get("offset")
        points = None if offset is None else offset.val.astype(np.uint8)
        bits = inputs.get("data", inputs.get("nonzero_data")).dtype.get_bitwidth()
        codes = (data.astype(np.int16) + (1 << (bits - 1)) * signed).astype(np.uint8)
        size = data.shape[1] // scales.shape[1]
        return Described("affine", data.shape, bits, size, codes=codes, scales=scales, zero_points=points, mask=mask)
    tables = inputs["lut"].val
    groups, vector = tables.shape[0], tables.shape[-1]
    indices, mask = scattered(inputs, "indices", "indices_mask", "indices_nonzero_data")
    shape = (len(indices) * vector, indices.shape[1])
    palette = tables.reshape(groups, -1, *((vector,) if vector > 1 else ()))
    bits, size = int(np.log2(tables.shape[-2])), shape[0] // groups if groups > 1 else 0
    return Described("palette", shape, bits, size, vector, codes=indices.astype(np.uint8), palette=palette, mask=mask)


def scattered(inputs: dict[str, Var], dense: str, mask: str, nonzero: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes as a matrix, and the mask of those that are kept."""
    if dense in inputs:
        return inputs[dense].val, None
    kept = inputs[mask].val.astype(bool)
    codes = np.zeros(kept.shape, inputs[nonzero].val.dtype)
    codes[kept] = inputs[nonzero].val
    return codes, kept
