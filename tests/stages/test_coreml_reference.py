"""The reference executor on packages that it did not write: coremltools' own, traced and compressed, and others."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.libmilstoragepython import _BlobStorageWriter as BlobWriter
from coremltools.proto import MIL_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.runtimes.coreml_reference import MLProgram, ProgramError, UnknownOperatorError
from stages.runtimes.coreml_reference.weights import unpack

PROJECT = Path(__file__).parents[2]
IMAGE = (1, 3, 24, 24)
BINARIES = {"int4": (4, True), "uint1": (1, False), "uint2": (2, False), "uint3": (3, False), "uint4": (4, False)}


class Network(nn.Module):
    """Convolutions with lopsided strides, depthwise and pointwise, pooling, attention-like products, norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, (2, 1), 1), nn.BatchNorm2d(16), nn.ReLU())
        self.mixer = nn.Sequential(nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.Conv2d(16, 32, 1), nn.GELU())
        self.norm, self.query = nn.LayerNorm(32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.mixer(nn.functional.max_pool2d(self.stem(image), 2))
        x = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 0, 0, 1)), 3, 2, 1, count_include_pad=False)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        scores = (self.query(tokens) @ tokens.transpose(1, 2) / 8).softmax(-1)
        first, second = (scores @ tokens + tokens).chunk(2, dim=-1)
        mixed = torch.cat([torch.sigmoid(second) * first, torch.tanh(second)], -1)
        return self.head(mixed.mean(1)).clamp(-4, 4)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def traced(network: Network) -> ct.models.MLModel:
    with torch.no_grad():
        trace = torch.jit.trace(network, torch.zeros(IMAGE))
    inputs = [ct.TensorType("image", IMAGE)]
    return ct.convert(trace, inputs=inputs, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(IMAGE).astype(np.float32)


def outputs(model: ct.models.MLModel, path: Path, **options) -> np.ndarray:
    model.save(str(path))
    (result,) = MLProgram(path, **options).predict({"image": pixels()}).values()
    return result


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 5e-3), ("float32", 1e-3)])
def test_a_traced_network_is_what_torch_computes(network, traced, tmp_path, precision, tolerance):
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels())).numpy()
    found = outputs(traced, tmp_path / "traced.mlpackage", precision=precision)
    assert found.dtype == precision and np.abs(found - expected).max() < tolerance


OPTIMIZERS = {
    "palette-4": lambda model: ct.optimize.coreml.palettize_weights(
        model, config(ct.optimize.coreml.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=100))
    ),
    "palette-6-grouped": lambda model: ct.optimize.coreml.palettize_weights(
        model,
        config(
            ct.optimize.coreml.OpPalettizerConfig(
                mode="uniform", nbits=6, granularity="per_grouped_channel", group_size=8, weight_threshold=100
            )
        ),
    ),
    "int8": lambda model: ct.optimize.coreml.linear_quantize_weights(
        model, config(ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear", weight_threshold=100))
    ),
    "int4-blocks": lambda model: ct.optimize.coreml.linear_quantize_weights(
        model,
        config(
            ct.optimize.coreml.OpLinearQuantizerConfig(
                dtype="uint4", mode="linear", granularity="per_block", block_size=16, weight_threshold=100
            )
        ),
    ),
    "sparse": lambda model: ct.optimize.coreml.prune_weights(
        model, config(ct.optimize.coreml.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=100))
    ),
    "sparse-palette": lambda model: ct.optimize.coreml.palettize_weights(
        OPTIMIZERS["sparse"](model),
        config(ct.optimize.coreml.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=100)),
        joint_compression=True,
    ),
    "sparse-int8": lambda model: ct.optimize.coreml.linear_quantize_weights(
        OPTIMIZERS["sparse"](model),
        config(ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=100)),
        joint_compression=True,
    ),
}


def config(operation) -> ct.optimize.coreml.OptimizationConfig:
    return ct.optimize.coreml.OptimizationConfig(global_config=operation)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_coremltools_compressed_is_what_coremltools_decompresses(traced, tmp_path, name):
    compressed = OPTIMIZERS[name](traced)
    operations = compressed.get_spec().mlProgram.functions["main"].block_specializations["CoreML8"].operations
    assert any(operation.type.startswith("constexpr_") for operation in operations)
    expected = outputs(ct.optimize.coreml.decompress_weights(compressed), tmp_path / "dense.mlpackage")
    assert np.abs(outputs(compressed, tmp_path / "small.mlpackage") - expected).max() < 2e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_compression_in_the_form_of_ios_16(network, tmp_path, bits):
    with torch.no_grad():
        trace = torch.jit.trace(network, torch.zeros(IMAGE))
    inputs = [ct.TensorType("image", IMAGE)]
    model = ct.convert(trace, inputs=inputs, minimum_deployment_target=ct.target.iOS16, skip_model_load=True)
    compressed = OPTIMIZERS["int8" if bits == 8 else "palette-4"](model)
    expected = outputs(ct.optimize.coreml.decompress_weights(compressed), tmp_path / "dense.mlpackage")
    assert np.abs(outputs(compressed, tmp_path / "small.mlpackage") - expected).max() < 2e-3


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted([*BINARIES, "uint6"])), st.integers(1, 300), st.randoms(use_true_random=False))
def test_unpacking_is_the_inverse_of_coremltools_packing(tmp_path_factory, kind, count, random):
    bits, signed = BINARIES.get(kind, (6, False))
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    codes = np.array([random.randint(low, high) for _ in range(count)], np.int8 if signed else np.uint8)
    path = tmp_path_factory.mktemp("blob") / "weight.bin"
    writer = BlobWriter(str(path))
    offset = getattr(writer, f"write_{kind}_data")(codes)
    del writer
    content = np.fromfile(path, np.uint8)
    size, start = content[offset + 8 : offset + 24].view("<u8")
    found = unpack(content[start : start + size], count, bits, signed)
    assert found.dtype == codes.dtype and (found == codes).all()


def package(program, path: Path) -> Path:
    ct.convert(
        program, minimum_deployment_target=ct.target.iOS18, pass_pipeline=ct.PassPipeline.EMPTY, skip_model_load=True
    ).save(str(path))
    return path


def test_states_keep_their_meaning_where_copies_could_be_spared(tmp_path):
    """The value read before an update stays what it was, in one call as from call to call."""

    @mb.program(
        input_specs=[
            mb.TensorSpec((1, 2), types.fp16),
            mb.TensorSpec((1,), types.int32),
            mb.StateTensorSpec((4, 2), types.fp16),
        ],
        opset_version=ct.target.iOS18,
    )
    def program(row, position, memory):
        before = mb.read_state(input=memory)
        end = mb.add(x=position, y=np.int32([1]))
        begin = mb.concat(values=[position, np.int32([0])], axis=0)
        stop = mb.concat(values=[end, np.int32([2])], axis=0)
        after = mb.coreml_update_state(state=memory, value=mb.slice_update(x=before, update=row, begin=begin, end=stop))
        doubled = mb.mul(x=after, y=np.float16(2))
        last = mb.coreml_update_state(state=memory, value=doubled)
        return mb.sub(x=after, y=before, name="difference"), mb.identity(x=last, name="last")

    function = MLProgram(package(program, tmp_path / "state.mlpackage")).function()
    state, expected = function.new_state(), np.zeros((4, 2))
    for position in (1, 3, 1):
        row = np.array([[position, 0.5]], np.float16)
        found = function.predict({"row": row, "position": np.array([position], np.int32)}, state)
        before = expected.copy()
        expected[position] = row
        assert (found["difference"] == expected - before).all()
        expected = expected * 2
        assert (found["last"] == expected).all() and (state["memory"].numpy() == expected).all()
    assert (found["last"] == expected).all()  # what was returned earlier is not changed by later calls


class Memory(nn.Module):
    """Keeps a running mixture of the rows that it was given."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share
        self.register_buffer("memory", torch.zeros(4, 8))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.memory[1:3] = self.memory[1:3] * self.share + rows
        return self.memory @ self.memory.T


def test_states_and_functions_that_coremltools_made(tmp_path):
    functions = {"slow": 0.75, "fast": 0.25}
    merged = ct.utils.MultiFunctionDescriptor()
    for name, share in functions.items():
        model = ct.convert(
            torch.jit.trace(Memory(share), torch.zeros(2, 8)),
            inputs=[ct.TensorType("rows", (2, 8))],
            outputs=[ct.TensorType("products")],
            states=[ct.StateType(ct.TensorType(shape=(4, 8), dtype=np.float16), "memory")],
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        )
        model.save(str(tmp_path / f"{name}.mlpackage"))
        merged.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
    merged.default_function_name = "slow"
    ct.utils.save_multifunction(merged, str(tmp_path / "merged.mlpackage"))

    program = MLProgram(tmp_path / "merged.mlpackage")
    assert program.functions == ["fast", "slow"]
    memory, state = torch.zeros(4, 8), program.new_state()
    for index, name in enumerate(["slow", "fast", "slow"]):
        rows = torch.randn(2, 8, generator=torch.Generator().manual_seed(index))
        expected = Memory(functions[name])
        expected.memory = memory
        with torch.no_grad():
            products = expected(rows).numpy()
        found = program.function(name).predict({"rows": rows}, state)["products"]
        assert np.abs(found - products).max() < 2e-2


def test_functions_do_not_get_each_others_constants(tmp_path):
    """Small operands, each a constant of its own: those of one function may be gone when the next one is read."""

    @mb.program(input_specs=[mb.TensorSpec((2, 3), types.fp16)], opset_version=ct.target.iOS18)
    def program(x):
        for _ in range(9):
            scale = mb.const(val=np.ones((2, 1), np.float16))
            weight = mb.constexpr_blockwise_shift_scale(data=np.ones((2, 3), np.int8), scale=scale)
            x = mb.add(x=x, y=weight)
        return mb.identity(x=x, name="sum")

    path = package(program, tmp_path / "scales.mlpackage")
    model = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = ct.utils.load_spec(str(model))
    original = spec.mlProgram.functions["main"]
    for number in range(40):
        function = spec.mlProgram.functions[f"times_{number}"]
        function.CopyFrom(original)
        block = function.block_specializations[function.opset]
        operations = []
        for operation in map(copy.deepcopy, block.operations):
            if operation.type.startswith("constexpr_"):
                operations.append(named(operation.inputs["scale"].arguments[0], f"scale_{len(operations)}"))
                halves = np.full((2, 1), number, np.float16).tobytes()
                operations[-1].attributes["val"].immediateValue.tensor.bytes.values = halves
            operations.append(operation)
        del block.operations[:]
        block.operations.extend(operations)
    model.write_bytes(spec.SerializeToString())

    program = MLProgram(path)
    for number in range(40):
        found = program.function(f"times_{number}").predict({"x": np.zeros((2, 3))})["sum"]
        assert (found == 9 * number).all(), number


def named(binding, name: str) -> MIL_pb2.Operation:
    """The constant that makes a literal, which is then bound by name."""
    constant = MIL_pb2.Operation(type="const", outputs=[{"name": name, "type": binding.value.type}])
    constant.attributes["val"].CopyFrom(binding.value)
    binding.name = name
    return constant


ELEMENTWISE = ("abs", "erf", "exp", "gelu", "relu", "rsqrt", "sigmoid", "silu", "sqrt", "square", "tanh")
PAIRWISE = ("add", "sub", "mul", "real_div", "maximum", "minimum")


def test_every_operation_is_rounded_once(tmp_path):
    """Whatever way is taken inside, the result is float32's, rounded at the end: over all finite float16 numbers."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)]
    specs = [mb.TensorSpec(numbers.shape, types.fp16) for _ in range(2)]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, y):
        results = [getattr(mb, name)(x=x, name=f"of_{name}") for name in ELEMENTWISE]
        return (*results, *(getattr(mb, name)(x=x, y=y, name=f"of_{name}") for name in PAIRWISE))

    path = package(program, tmp_path / "elementwise.mlpackage")
    inputs = {"x": numbers, "y": np.random.default_rng(0).permutation(numbers)}
    rounded, exact = (MLProgram(path, precision=precision).predict(inputs) for precision in ("float16", "float32"))
    for name in (*ELEMENTWISE, *PAIRWISE):
        with np.errstate(over="ignore"):
            expected = exact[f"of_{name}"].astype(np.float16)
        assert np.array_equal(rounded[f"of_{name}"], expected, equal_nan=True), name


def test_a_sum_is_accumulated_in_float32(tmp_path):
    @mb.program(input_specs=[mb.TensorSpec((1, 4096), types.fp16)], opset_version=ct.target.iOS18)
    def program(x):
        return mb.reduce_mean(x=x, axes=[-1], keep_dims=True, name="mean")

    result = MLProgram(package(program, tmp_path / "mean.mlpackage")).predict({"x": np.full((1, 4096), 100.0)})
    assert result["mean"].dtype == np.float16 and result["mean"][0, 0] == 100  # the sum itself is beyond float16


def test_slices_of_every_kind(tmp_path):
    @mb.program(
        input_specs=[mb.TensorSpec((4, 6, 5), types.fp32), mb.TensorSpec((3,), types.int32)],
        opset_version=ct.target.iOS18,
    )
    def program(x, begin):
        masks = {"begin_mask": [True, False, False], "squeeze_mask": [False, False, True]}
        last = mb.add(x=begin, y=np.int32([2, 2, 2]))
        return (
            mb.slice_by_index(x=x, begin=[3, 1, -2], end=[4, 6, 9], stride=[1, 2, 1], **masks, name="masked"),
            mb.slice_by_index(x=x, begin=[3, 5, 0], end=[0, 1, 5], stride=[-1, -2, 1], name="backwards"),
            mb.slice_by_index(x=x, begin=begin, end=last, name="computed"),
            mb.slice_by_size(x=x, begin=begin, size=[2, -1, 1], name="sized"),
        )

    x = np.arange(120, dtype=np.float32).reshape(4, 6, 5)
    path = package(program, tmp_path / "slices.mlpackage")
    found = MLProgram(path).predict({"x": x, "begin": np.array([1, 2, 3], np.int32)})
    assert np.array_equal(found["masked"], x[:4, 1:6:2, 3])
    assert np.array_equal(found["backwards"], x[3:0:-1, 5:1:-2])
    assert np.array_equal(found["computed"], x[1:3, 2:4, 3:5])
    assert np.array_equal(found["sized"], x[1:3, 2:, 3:4])


def test_unknown_operators_are_all_named(tmp_path):
    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp32)], opset_version=ct.target.iOS18)
    def program(x):
        noise = mb.random_normal(shape=np.int32([1, 4]), name="noise")
        return mb.add(x=x, y=mb.mul(x=noise, y=mb.random_uniform(shape=np.int32([1, 4]), name="more")))

    message = r"does not know random_normal \(at 'noise'\), random_uniform \(at 'more'\)"
    with pytest.raises(UnknownOperatorError, match=message) as error:
        MLProgram(package(program, tmp_path / "odd.mlpackage")).function()
    assert "@operator" in error.value.hint


def test_inputs_that_do_not_fit_are_named(traced, tmp_path):
    traced.save(str(tmp_path / "traced.mlpackage"))
    program = MLProgram(tmp_path / "traced.mlpackage")
    for inputs, message in (
        ({}, "needs the input 'image'"),
        ({"image": np.zeros((1, 3, 8, 8))}, r"has shape \(1, 3, 8, 8\); it takes \(1, 3, 24, 24\) float16"),
        ({"image": pixels(), "mask": 0}, "has no input 'mask'"),
    ):
        with pytest.raises(ProgramError, match=message):
            program.predict(inputs)
    with pytest.raises(ProgramError, match="no function 'mian'") as error:
        program.function("mian")
    assert "main" in error.value.hint


def renamed(path: Path, specification: str) -> None:
    """Let the package's manifest name another file as its model."""
    entries = json.loads((path / "Manifest.json").read_text())
    entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"] = specification
    (path / "Manifest.json").write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "Manifest.json").unlink(), "Manifest.json is missing"),
        (lambda path: (path / "Manifest.json").write_text("{"), "Manifest.json is damaged"),
        (lambda path: (path / "Manifest.json").write_text(json.dumps({"itemInfoEntries": 1})), "is damaged"),
        (lambda path: renamed(path, "../../model.mlmodel"), "which lies outside of it"),
        (lambda path: renamed(path, "/etc/hostname"), "which lies outside of it"),
        (lambda path: next(path.rglob("*.mlmodel")).write_bytes(b"\xff\xff\xff"), "model.mlmodel is damaged"),
        (lambda path: next(path.rglob("*.mlmodel")).write_bytes(b""), "expected an mlProgram"),
        (lambda path: next(path.rglob("weight.bin")).unlink(), "weight.bin is missing"),
        (lambda path: next(path.rglob("weight.bin")).write_bytes(bytes(100)), "cut short"),
    ],
)
def test_a_damaged_package_is_one_clear_error(traced, tmp_path, damage, message):
    path = tmp_path / "traced.mlpackage"
    traced.save(str(path))
    damage(path)
    with pytest.raises(ProgramError, match=message):
        MLProgram(path).function()


def test_it_runs_without_importing_coremltools(traced, tmp_path):
    """Which takes ten seconds; only its protobuf classes are needed."""
    traced.save(str(tmp_path / "traced.mlpackage"))
    script = (
        "import sys; from stages.runtimes.coreml_reference import MLProgram; "
        "MLProgram(sys.argv[1]).function(); print('coremltools' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "traced.mlpackage")]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
