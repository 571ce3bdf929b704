"""HQQ, AWQ, NNCF's weights and SparseGPT: through the public stage, and what each of them promises."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipelines.errors import ConfigError
from pipelines.workspace import Workspace
from stages.artifacts import Calibration, Checkpoint, QuantizedModel
from stages.calibrate import calibrate
from stages.models.vlm import ModelConfig
from stages.quantize import quantize
from stages.quantizers.awq import Scaled, ScaledStatistics, equalized
from stages.quantizers.choices import choices
from stages.quantizers.gptq import gptq_affine, gptq_palette
from stages.quantizers.hqq import NORM, hqq
from stages.quantizers.layers import quantizable_layers, spatial_layers
from stages.quantizers.nncf_session import quiet_nncf
from stages.quantizers.nncf_weights import nncf_weights
from stages.quantizers.prune import prune
from stages.quantizers.rtn import round_to_nearest
from stages.quantizers.statistics import StatisticsReader
from stages.schema import QuantizeConfig
from tests.conf import group
from tests.toy import narrow_config, toy_checkpoint, toy_config

torch.set_num_threads(1)


OUTLYING = ("norm.weight", "up_proj.weight", "v_proj.weight", "depthwise.weight", "qkv.weight", "head.down.weight")


def workspace(path: Path) -> Workspace:
    for name in ("out", "scratch"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return Workspace(path / "out", path / "scratch")


def calibrated(checkpoint: Checkpoint, path: Path) -> Calibration:
    return calibrate(checkpoint, group("calibrate", "default", samples=4, batch=4), workspace(path))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrated(checkpoint, tmp_path_factory.mktemp("calibration"))


def outlying(path: Path, tied: bool = False, config: ModelConfig | None = None) -> Checkpoint:
    """Of the inputs of every group that AWQ scales, each eighth channel is large."""
    checkpoint = toy_checkpoint(path, tied=tied, config=config)
    state = load_file(checkpoint.weights)
    for name, tensor in state.items():
        if name.endswith(OUTLYING):
            tensor[::8] *= 8
    save_file(state, checkpoint.weights)
    return checkpoint


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, 32, 32, generator=generator), torch.randint(0, 256, (1, 9), generator=generator)


@torch.no_grad()
def logits(model: Any, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    from stages.models.qwen2 import MaskedContext

    pixels, ids = inputs
    embeddings = torch.cat([model.encode(pixels), model.text.embed_tokens(ids)], 1)
    count = embeddings.shape[1]
    context = MaskedContext(torch.arange(count), torch.ones(count, count).tril().bool(), model.config.text)
    result: torch.Tensor = model.text(embeddings, context)
    return result


SHIPPED: list[tuple[str, dict[str, Any], float]] = [
    ("hqq", {}, 0.25),
    ("hqq", {"bits": 3, "group_size": 16, "symmetric": True}, 0.5),
    ("hqq", {"bits": 8, "group_size": 0, "embeddings": 4}, 0.1),
    ("awq", {}, 0.25),
    ("awq", {"bits": 3, "convolutions": 4, "scale_search": True}, 0.6),
    ("awq", {"bits": 8, "group_size": 0, "symmetric": True}, 0.1),
    ("nncf", {}, 0.25),
    ("nncf", {"symmetric": True, "group_size": 16, "embeddings": 4, "convolutions": 4}, 0.35),
    ("nncf", {"bits": 8, "group_size": 0}, 0.1),
    ("sparse24", {}, 1.0),
    ("sparse24", {"method": "rtn", "bits": 8, "group_size": 0}, 1.0),
    ("sparse24", {"bits": 0}, 1.0),
    ("sparse24", {"sparsity_pattern": None, "sparsity": 0.3, "format": "palette", "group_size": 16}, 0.8),
    ("sparse24", {"sparsity_pattern": None, "sparsity": 0.3, "format": "palette", "method": "kmeans"}, 0.9),
]


@pytest.mark.parametrize(("name", "changes", "most"), SHIPPED)
def test_a_model_by_each_method_answers_like_the_float_model(
    name: str,
    changes: dict[str, Any],
    most: float,
    checkpoint: Checkpoint,
    calibration: Calibration,
    inputs: tuple[torch.Tensor, torch.Tensor],
    tmp_path: Path,
) -> None:
    """most: the greatest error of the logits, as a share of their spread."""
    config = group("quantize", name, **changes)
    model = quantize(checkpoint, config, workspace(tmp_path), calibration)
    exact = logits(checkpoint.model(), inputs)
    assert float((logits(model.model(), inputs) - exact).norm() / (exact - exact.mean()).norm()) < most
    store = model.store()
    form = store.format("text.layers.0.mlp.up_proj.weight")
    assert (form.bits, form.symmetric) == (config.bits, config.symmetric) or not config.bits or form.format == "palette"
    assert form.sparse == (name == "sparse24")
    if form.sparse:
        zeros = float((store.dense("text.layers.0.mlp.up_proj.weight") == 0).mean())
        assert zeros >= (0.5 if config.sparsity_pattern else round(0.3 * 96 * 64) / (96 * 64))


@pytest.mark.slow
def test_the_same_bytes_twice(checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path) -> None:
    for name in ("hqq", "awq", "nncf", "sparse24"):
        paths = []
        for turn in ("one", "two"):
            model = quantize(checkpoint, group("quantize", name), workspace(tmp_path / name / turn), calibration)
            paths.append(model.path / "weights.safetensors")
        assert paths[0].read_bytes() == paths[1].read_bytes(), name


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([1, 7, 32]),
    st.booleans(),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=60)
def test_hqq_never_exceeds_rounding_in_its_norm(
    bits: int, rows: int, groups: int, size: int, symmetric: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, groups * size, generator=generator) ** 3 * 0.02
    norms = [
        (found.dense() - weight).abs().pow(NORM).reshape(rows, groups, size).sum(-1)
        for found in (hqq(weight, bits, size, symmetric), round_to_nearest(weight, bits, size, symmetric))
    ]
    assert bool((norms[0] <= norms[1] * (1 + 1e-5) + 1e-7).all())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_hqq_gains_in_its_norm(bits: int, symmetric: bool) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    found, plain = (make(weight, bits, 64, symmetric).dense() for make in (hqq, round_to_nearest))
    assert float((found - weight).abs().pow(NORM).sum()) < 0.97 * float((plain - weight).abs().pow(NORM).sum())


def scalings_of(
    checkpoint: Checkpoint, calibration: Calibration, config: QuantizeConfig
) -> tuple[dict[str, Any], StatisticsReader]:
    with torch.device("meta"):
        model: Any = checkpoint.config().build()
    layers = {**quantizable_layers(model), **spatial_layers(model)}
    chosen = choices(config, {name: (layer.role, layer.shape) for name, layer in layers.items()})
    statistics = StatisticsReader(calibration.statistics)
    with checkpoint.tensors() as tensors:
        return equalized(model, tensors, statistics, chosen), statistics


@pytest.mark.parametrize("head", ["whole", "tied", "of low rank"])
def test_awqs_scaled_float_model_is_the_same_function(
    head: str, inputs: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    config = narrow_config(num_attention_heads=3) if head == "of low rank" else toy_config(tied=head == "tied")
    checkpoint = outlying(tmp_path / "checkpoint", config=config)
    calibration = calibrated(checkpoint, tmp_path / "calibration")
    config = group("quantize", "awq", bits=3, convolutions=3)
    scalings, statistics = scalings_of(checkpoint, calibration, config)
    scaled = checkpoint.model()
    with checkpoint.tensors() as tensors:
        found = Scaled(tensors, scalings)
        assert list(found) == list(tensors) and len(found) == len(tensors)
        scaled.load_state_dict({name: found[name].float() for name in found}, assign=True)
    torch.testing.assert_close(logits(scaled, inputs), logits(checkpoint.model(), inputs), rtol=1e-5, atol=1e-5)
    moved = {
        name
        for name, scaling in scalings.items()
        if any(bool((s != 1).any()) for s in vars(scaling).values() if s is not None)
    }
    expected = {"text.layers.0.self_attn.q_proj.weight", "text.layers.1.mlp.down_proj.weight"}
    assert expected <= moved and any(name.startswith("vision.") for name in moved)
    heads = {"whole": {"weight"}, "tied": set(), "of low rank": {"down.weight", "up.weight"}}[head]
    assert {name for name in scalings if "lm_head" in name} == {f"text.lm_head.{part}" for part in heads}
    assert head != "of low rank" or {"text.lm_head.down.weight", "text.lm_head.up.weight"} <= moved
    assert not any(name.startswith("projector") or name.endswith("embed_tokens.weight") for name in scalings)
    for name in moved:
        for scale in (scalings[name].rows, scalings[name].columns):
            assert scale is None or torch.equal(scale.log2().round().exp2(), scale)
    name = "text.layers.0.self_attn.v_proj.weight"  # scaled on both sides
    adjusted, columns = ScaledStatistics(statistics, scalings), scalings[name].columns
    assert scalings[name].rows is not None and columns is not None
    torch.testing.assert_close(
        adjusted.second_moment(name), statistics.second_moment(name) / columns / columns[:, None]
    )
    weight = load_file(checkpoint.weights)[name].float()
    before, after = statistics.fisher(name) * weight.square(), adjusted.fisher(name) * found[name].square()
    torch.testing.assert_close(after, before)


def test_awq_errs_less_on_the_calibration_inputs(tmp_path: Path) -> None:
    checkpoint = outlying(tmp_path / "checkpoint")
    calibration = calibrated(checkpoint, tmp_path / "calibration")
    scalings, statistics = scalings_of(checkpoint, calibration, group("quantize", "awq", bits=3))
    weights = load_file(checkpoint.weights)
    errors = np.zeros(2)
    for name, scaling in scalings.items():
        if scaling.columns is None or not name.startswith("text"):
            continue
        weight, second = weights[name].float(), statistics.second_moment(name).double()
        for index, columns in enumerate((scaling.columns, torch.ones_like(scaling.columns))):
            missed = (weight - round_to_nearest(weight * columns, 3, 32, False).dense() / columns).double()
            errors[index] += float(((missed @ second) * missed).sum())
    assert errors[0] < 0.8 * errors[1]


def test_awq_says_which_weights_it_only_rounds(
    checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path
) -> None:
    model: QuantizedModel = quantize(checkpoint, group("quantize", "awq"), workspace(tmp_path), calibration)
    store = model.store()
    assert "nothing before it can take the inverse" in store.format("projector.0.weight").reason
    assert store.format("text.layers.0.mlp.down_proj.weight").reason == ""


NNCFS = [(4, 32, False), (4, 32, True), (4, 16, True), (4, 96, False), (8, 96, False), (8, 96, True)]


@pytest.mark.parametrize(("bits", "size", "symmetric"), NNCFS)
@pytest.mark.parametrize("rows", [1, 6])
def test_nncfs_codes_mean_what_nncf_computes_with(bits: int, size: int, symmetric: bool, rows: int) -> None:
    """NNCF multiplies in float16, so its weight is ours, rounded to float16."""
    weight = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)) * 0.05
    found = nncf_weights(weight, bits, size, symmetric)

    class Alone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(96, rows + rows % 2, bias=False)
            self.layer.weight.data = torch.nn.functional.pad(weight, (0, 0, 0, rows % 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    with quiet_nncf() as nncf:
        mode = nncf.CompressWeightsMode[f"INT{bits}_{'SYM' if symmetric else 'ASYM'}"]
        options = {"ratio": 1.0, "all_layers": True, "group_size": size} if bits == 4 else {}
        made = nncf.compress_weights(Alone().eval(), mode=mode, dataset=nncf.Dataset([torch.zeros(1, 96)]), **options)
    theirs = made(torch.eye(96)).T[:rows]
    assert torch.equal(found.dense().half().float(), theirs)


@pytest.mark.parametrize(("changes", "part"), [({"bits": 3}, "no 3 bits"), ({"bits": 8}, "no 8 bits in groups of 32")])
def test_what_nncf_cannot_do_is_refused(
    changes: dict[str, Any], part: str, checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=part):
        quantize(checkpoint, group("quantize", "nncf", **changes), workspace(tmp_path), calibration)


def moment(columns: int, seed: int = 0) -> torch.Tensor:
    """Correlated inputs of very different sizes, with one that is never used."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)[:, None]
    inputs = torch.randn(3 * columns, columns, generator=generator) @ mixing
    inputs[:, columns // 2] = 0
    return inputs.T @ inputs / (3 * columns)


def weighted(weight: torch.Tensor, dense: torch.Tensor, second: torch.Tensor) -> float:
    missed = (weight - dense).double()
    return float(((missed @ second.double()) * missed).sum())


@pytest.mark.parametrize("columns", [9, 130, 160])
@pytest.mark.parametrize(("share", "pattern"), [(0.5, None), (0.37, None), (0.0, "2:4"), (0.0, "1:3"), (0.0, "4:8")])
def test_pruned_weights(columns: int, share: float, pattern: str | None) -> None:
    """The share is exact, the pattern holds up to the last column, and the rest makes up for much of the error."""
    weight = torch.randn(24, columns, generator=torch.Generator().manual_seed(1)) * 0.05
    second = moment(columns)
    found, mask = prune(weight, second, share, pattern, damping=0.01)
    assert bool((found[~mask] == 0).all()) and bool((found[mask] != 0).all())
    plain = torch.zeros_like(weight, dtype=torch.bool)
    if pattern is None:
        assert int((~mask).sum()) == round(share * weight.numel())
        plain.view(-1)[weight.abs().flatten().argsort(descending=True)[: int(mask.sum())]] = True
    else:
        kept, size = map(int, pattern.split(":"))
        for start in range(0, columns, size):
            part = slice(start, start + size)
            assert bool((mask[:, part].sum(1) == min(kept, mask[:, part].shape[1])).all())
            plain[:, part] = mask[:, part]
    assert weighted(weight, found, second) < 0.9 * weighted(weight, weight * plain, second)


@pytest.mark.parametrize("refinement", [0, 3])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_keeps_the_zeros_and_makes_up_for_them(refinement: int, ordered: bool) -> None:
    weight = torch.randn(24, 160, generator=torch.Generator().manual_seed(1)) * 0.05
    second = moment(160)
    pruned, mask = prune(weight, second, 0.0, "2:4", damping=0.01)
    options = {"damping": 0.01, "activation_order": ordered, "refinement": refinement, "mask": mask}
    affine = gptq_affine(pruned, second, 4, 32, False, search=False, **options)
    palette = gptq_palette(pruned, second, 4, 8, mask.float(), **options)
    rounded = round_to_nearest(pruned, 4, 32, False).dense()
    for result, most in ((affine, weighted(pruned, rounded, second)), (palette, torch.inf)):
        assert bool((result.dense()[~mask] == 0).all())
        assert weighted(pruned, result.dense(), second) <= most


def test_sparsity_is_reported(checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path) -> None:
    model = quantize(checkpoint, group("quantize", "sparse24"), workspace(tmp_path), calibration)
    formats = json.loads((model.path / "formats.json").read_text())["tensors"]
    assert formats["text.layers.1.self_attn.q_proj.weight"]["sparsity"] == 0.5
    assert "sparsity" not in formats["text.embed_tokens.weight"]
