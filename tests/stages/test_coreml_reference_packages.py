"""The reference executor on what packages can hold beside operators: compressed weights, states, shapes, images."""

import subprocess
import sys
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from stages.runtimes.coreml_reference import MLProgram, ProgramError
from tests.stages.test_coreml_reference_models import convert, normal

PROJECT = Path(__file__).parents[2]
HALF, FULL = ct.precision.FLOAT16, ct.precision.FLOAT32
COREML = ct.optimize.coreml


class Large(nn.Module):
    """Weights of over 65,536 values: what is larger stays packed until it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(600, 256), nn.Linear(256, 512), nn.Linear(512, 256)
        self.mix = nn.Conv2d(256, 300, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        x = x + self.down(F.gelu(self.up(x)))
        mixed = self.mix(x.transpose(1, 2).unsqueeze(-1)).sum((2, 3))
        return torch.cat([(x @ self.embed.weight.T).flatten(1), mixed], -1)


IDS = {"ids": np.array([[3, 599, 0, 77]], np.int32)}


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[nn.Module, ct.models.MLModel]:
    torch.manual_seed(0)
    module, path = Large().eval(), tmp_path_factory.mktemp("large") / "large.mlpackage"
    convert(module, IDS, path, target=ct.target.iOS18, precision=HALF)
    return module, ct.models.MLModel(str(path), skip_model_load=True)


def palettes(**options) -> COREML.OptimizationConfig:
    return COREML.OptimizationConfig(COREML.OpPalettizerConfig(mode="kmeans", weight_threshold=1, **options))


def codes(**options) -> COREML.OptimizationConfig:
    return COREML.OptimizationConfig(COREML.OpLinearQuantizerConfig(weight_threshold=1, **options))


def pruned(model: ct.models.MLModel) -> ct.models.MLModel:
    config = COREML.OpMagnitudePrunerConfig(n_m_ratio=(2, 4), weight_threshold=1)
    return COREML.prune_weights(model, COREML.OptimizationConfig(config))


COMPRESSIONS = {
    "int8": lambda model: COREML.linear_quantize_weights(model, codes(mode="linear_symmetric")),
    "uint8": lambda model: COREML.linear_quantize_weights(model, codes(mode="linear", dtype="uint8")),
    "int4-blocks": lambda model: COREML.linear_quantize_weights(
        model, codes(mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=32)
    ),
    "uint4-blocks": lambda model: COREML.linear_quantize_weights(
        model, codes(mode="linear", dtype="uint4", granularity="per_block", block_size=16)
    ),
    **{
        f"palette-{bits}": lambda model, bits=bits: COREML.palettize_weights(model, palettes(nbits=bits))
        for bits in (1, 2, 3, 4, 6, 8)
    },
    "palette-grouped": lambda model: COREML.palettize_weights(
        model, palettes(nbits=3, granularity="per_grouped_channel", group_size=4)
    ),
    "palette-scaled": lambda model: COREML.palettize_weights(
        model, palettes(nbits=4, granularity="per_grouped_channel", group_size=8, enable_per_channel_scale=True)
    ),
    "palette-vectors": lambda model: COREML.palettize_weights(
        model, palettes(nbits=4, cluster_dim=4, granularity="per_grouped_channel", group_size=100)
    ),
    "pruned": pruned,
    "pruned-palette": lambda model: COREML.palettize_weights(pruned(model), palettes(nbits=4), joint_compression=True),
    "pruned-int8": lambda model: COREML.linear_quantize_weights(
        pruned(model), codes(mode="linear_symmetric"), joint_compression=True
    ),
    "palette-int8": lambda model: COREML.linear_quantize_weights(
        COREML.palettize_weights(model, palettes(nbits=4)),
        codes(mode="linear_symmetric", granularity="per_tensor"),
        joint_compression=True,
    ),
}
FAST = ("int8", "int4-blocks", "palette-1", "palette-3", "palette-grouped", "pruned-int8")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in COMPRESSIONS]
)
def test_packed_weights_are_what_coremltools_decompresses_within_any_memory(large, tmp_path, name):
    compressed = COMPRESSIONS[name](large[1])
    used = {operation.type for operation in operations_of(compressed)}
    assert any(kind.startswith("constexpr_") for kind in used)
    compressed.save(str(tmp_path / "packed.mlpackage"))
    COREML.decompress_weights(compressed).save(str(tmp_path / "dense.mlpackage"))
    (expected,) = MLProgram(tmp_path / "dense.mlpackage").predict(IDS).values()
    (packed,) = MLProgram(tmp_path / "packed.mlpackage", memory_mib=0).predict(IDS).values()
    (resident,) = MLProgram(tmp_path / "packed.mlpackage").predict(IDS).values()
    scale = np.abs(expected).max()
    assert np.abs(packed - resident).max() <= 1e-3 * scale  # the order of a sum's terms
    assert np.abs(resident - expected).max() <= 4e-3 * scale


def operations_of(model: ct.models.MLModel):
    (function,) = model.get_spec().mlProgram.functions.values()
    return function.block_specializations[function.opset].operations


def test_large_float_weights_match_torch(large, tmp_path):
    module, model = large
    model.save(str(tmp_path / "large.mlpackage"))
    with torch.no_grad():
        expected = module(torch.from_numpy(IDS["ids"]).long()).numpy()
    for memory in (0, 1, 2000):
        (found,) = MLProgram(tmp_path / "large.mlpackage", memory_mib=memory).predict(IDS).values()
        assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max(), memory


class Cached(nn.Module):
    """A layer of a decoder whose keys and values are buffers of a fixed length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 20)
        self.register_buffer("keys", torch.zeros(1, 2, 8, 8))
        self.register_buffer("values", torch.zeros(1, 2, 8, 8))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        length, tokens = mask.shape[-1], ids.shape[-1]
        q, k, v = self.qkv(self.embed(ids)).reshape(1, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4)
        self.keys[:, :, length - tokens : length] = k
        self.values[:, :, length - tokens : length] = v
        attended = F.scaled_dot_product_attention(q, self.keys[:, :, :length], self.values[:, :, :length], mask)
        return self.head(attended.transpose(1, 2).reshape(1, tokens, 16))


def test_a_decoder_with_a_cache_goes_token_by_token(tmp_path):
    """As coremltools' own example: the state is written at the place that a flexible mask's length says."""
    torch.manual_seed(0)
    module, path = Cached().eval(), tmp_path / "cached.mlpackage"
    tokens, length = ct.RangeDim(1, 8, default=1), ct.RangeDim(1, 8, default=1)
    with torch.no_grad():
        trace = torch.jit.trace(module, (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 1, 3)))
    state = [ct.StateType(ct.TensorType(shape=(1, 2, 8, 8), dtype=np.float16), name) for name in ("keys", "values")]
    inputs = [ct.TensorType("ids", (1, tokens), np.int32), ct.TensorType("mask", (1, 1, tokens, length), np.float16)]
    ct.convert(
        trace, inputs=inputs, states=state, minimum_deployment_target=ct.target.iOS18, skip_model_load=True
    ).save(str(path))
    ids = np.array([[4, 9, 1, 19, 7]], np.int32)
    whole = Cached().eval()
    whole.load_state_dict(module.state_dict())
    whole.keys.zero_(), whole.values.zero_()
    with torch.no_grad():
        expected = whole(torch.from_numpy(ids).long(), torch.zeros(5, 5).fill_(-1e4).triu(1)[None, None]).numpy()
    program = MLProgram(path)
    state = program.make_state()
    for position in range(5):
        mask = np.zeros((1, 1, 1, position + 1), np.float16)
        (found,) = program.predict({"ids": ids[:, position : position + 1], "mask": mask}, state=state).values()
        assert np.abs(found[0, 0] - expected[0, position]).max() < 1e-2, position
    (blank,) = program.predict({"ids": ids[:, :1], "mask": np.zeros((1, 1, 1, 1))}, state=program.make_state()).values()
    assert np.abs(blank[0, 0] - expected[0, 0]).max() < 1e-2  # a new state is empty


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return F.interpolate(y, scale_factor=2, mode="nearest").flatten(2).mean(-1).reshape(x.shape[0], 2, 2)


@pytest.mark.parametrize("kind", ["range", "listed"])
def test_flexible_shapes_are_kept_to(tmp_path, kind):
    torch.manual_seed(0)
    module, path = Sized().eval(), tmp_path / "sized.mlpackage"
    if kind == "range":
        shape = ct.Shape((ct.RangeDim(1, 4), 3, ct.RangeDim(6, 20, default=8), 8))
        wrong, message = (1, 3, 5, 8), r"it takes \(1\.\.4, 3, 6\.\.20, 8\)"
    else:
        shape = ct.EnumeratedShapes([(1, 3, 8, 8), (1, 3, 12, 8), (2, 3, 8, 8)], default=(1, 3, 8, 8))
        wrong, message = (2, 3, 12, 8), r"\(1, 3, 8, 8\) or \(1, 3, 12, 8\) or \(2, 3, 8, 8\)"
    types = [ct.TensorType("x", shape, np.float32)]
    convert(module, {"x": normal(1, 3, 8, 8)}, path, target=ct.target.iOS17, precision=FULL, types=types)
    program = MLProgram(path, precision="float32")
    for size in ((1, 3, 8, 8), (1, 3, 12, 8), (2, 3, 8, 8)):
        with torch.no_grad():
            expected = module(torch.from_numpy(normal(*size))).numpy()
        (found,) = program.predict({"x": normal(*size)}).values()
        assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-4
    with pytest.raises(ProgramError, match=message):
        program.predict({"x": normal(*wrong)})


@pytest.mark.parametrize("colour", ["RGB", "BGR", "GRAYSCALE"])
def test_images_go_in_and_out_as_pictures(tmp_path, colour):
    """scale and bias are the program's; the order of the channels is the description's."""
    channels = 1 if colour == "GRAYSCALE" else 3
    layout = getattr(ct.colorlayout, colour)

    class Inverted(nn.Module):
        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            return 255 - (picture + 0.5) * 127.5 * torch.tensor([1.0, 0.5, 0.25])[:channels, None, None]

    bias = [-0.5] * channels if channels == 3 else -0.5
    shape, path = (1, channels, 6, 10), tmp_path / "picture.mlpackage"
    convert(
        Inverted(),
        {"picture": normal(*shape)},
        path,
        target=ct.target.iOS16,
        precision=FULL,
        types=[ct.ImageType("picture", shape, scale=1 / 127.5, bias=bias, color_layout=layout)],
        outputs=[ct.ImageType("inverted", color_layout=layout)],
    )
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3) if channels == 3 else (6, 10)).astype(np.uint8)
    share = np.array([1, 0.5, 0.25] if colour != "BGR" else [0.25, 0.5, 1])
    expected = 255 - pixels * (share if channels == 3 else 1.0)
    program = MLProgram(path, precision="float32")
    for given in (pixels, Image.fromarray(pixels)):
        result = program.predict({"picture": given})["inverted"]
        assert isinstance(result, Image.Image) and np.abs(np.asarray(result) - expected).max() <= 1
    with pytest.raises(ProgramError, match=r"it takes RGB|it takes BGR|it takes grayscale"):
        program.predict({"picture": Image.fromarray(pixels[:3])})


def test_an_input_with_a_default_may_be_left_out(tmp_path):
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return x * 2 + shift

    types = [
        ct.TensorType("x", (1, 3), np.float32),
        ct.TensorType("shift", (1, 3), np.float32, default_value=np.full((1, 3), 0.5, np.float32)),
    ]
    inputs, path = {"x": normal(1, 3), "shift": normal(1, 3)}, tmp_path / "shifted.mlpackage"
    convert(Shifted(), inputs, path, target=ct.target.iOS17, precision=FULL, types=types)
    (found,) = MLProgram(path).predict({"x": inputs["x"]}).values()
    assert np.abs(found - (inputs["x"] * 2 + 0.5)).max() < 1e-5


class Loops(nn.Module):
    """Scripted, so that conditions and loops stay in the program."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x
        while bool(total.abs().max() < 100.0):
            total = total * 3.0 + x
        if bool(total.sum() > 0.0):  # noqa: SIM108
            total = total - 1.0
        else:
            total = total * 0.5
        return total


@pytest.mark.parametrize("sign", [1, -1])
def test_loops_and_conditions_run(tmp_path, sign):
    path, module = tmp_path / "loops.mlpackage", torch.jit.script(Loops())
    types = [ct.TensorType("x", (2, 2), np.float32)]
    ct.convert(
        module, inputs=types, minimum_deployment_target=ct.target.iOS17, compute_precision=FULL, skip_model_load=True
    ).save(str(path))
    x = sign * np.array([[1.5, 2], [0.25, 1]], np.float32)
    (found,) = MLProgram(path).predict({"x": x}).values()
    assert np.abs(found - module(torch.from_numpy(x)).numpy()).max() < 1e-3


def test_a_function_can_be_the_one_that_predict_runs(tmp_path, large):
    large[1].save(str(tmp_path / "one.mlpackage"))
    merged = ct.utils.MultiFunctionDescriptor()
    for name in ("first", "second"):
        merged.add_function(str(tmp_path / "one.mlpackage"), "main", name)
    merged.default_function_name = "first"
    ct.utils.save_multifunction(merged, str(tmp_path / "merged.mlpackage"))
    program = MLProgram(tmp_path / "merged.mlpackage", function_name="second")
    assert program.function_name == "second" and program.functions == ["first", "second"]
    (one,) = MLProgram(tmp_path / "one.mlpackage").predict(IDS).values()
    assert all((program.function(name).predict(IDS).popitem()[1] == one).all() for name in program.functions)
    with pytest.raises(ProgramError, match="no function 'thrid'"):
        MLProgram(tmp_path / "merged.mlpackage", function_name="thrid")


def test_it_is_importable_alone():
    script = (
        "import sys; from stages.runtimes.coreml_reference import MLProgram; "
        "print(sorted({name for name in sys.modules if name.split('.')[0] in ('coremltools', 'onnx', 'stages')}))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = eval(result.stdout)
    outside = ("stages", "stages.runtimes")
    assert all(name in outside or name.startswith("stages.runtimes.coreml_reference") for name in loaded), loaded


def test_the_readme_lists_the_operators_and_leaves_none_of_coremltools_out():
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    from stages.runtimes.coreml_reference import table

    readme = (Path(table.__file__).parent / "README.md").read_text()
    assert table.operator_table() in readme, "run: python -m stages.runtimes.coreml_reference.table"
    refused = {name for names in table.NOT_SUPPORTED for name in names.split(", ")}
    known = {*table.OPERATORS, *table.CONSTEXPR, *table.CONTROL, *table.STATE_OPERATORS, "const", "_const_symbolic"}
    assert not known & refused
    assert set(SSAOpRegistry.core_ops) - known - refused == set()
