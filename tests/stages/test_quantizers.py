"""The methods: codes in range, the store gives back exactly what was chosen, and the errors stay in their bounds."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import StageError
from stages.quantizers.gptq import gptq_affine, gptq_palette
from stages.quantizers.palettize import palettes, palettize, weighted_kmeans
from stages.quantizers.results import Affine
from stages.quantizers.rtn import round_to_nearest

torch.set_num_threads(1)


def matrix(rows: int, columns: int, seed: int, outliers: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    if outliers:
        weight[0] = 0
        weight[-1, 0] = 1e4
    return weight.half().float()


def moment(columns: int, seed: int, samples: int = 400) -> torch.Tensor:
    """Inputs that are correlated, of very different sizes, with one that is never used."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)[:, None]
    inputs = torch.randn(samples, columns, generator=generator) @ mixing
    inputs[:, columns // 2] = 0
    return inputs.T @ inputs / samples


def weighted_error(weight: torch.Tensor, dense: torch.Tensor, hessian: torch.Tensor) -> float:
    error = (weight - dense).double()
    return float(((error @ hessian.double()) * error).sum())


def check_affine(result: Affine, bits: int, symmetric: bool) -> None:
    assert result.codes.dtype == torch.uint8 and int(result.codes.max()) < 1 << bits
    assert result.scales.dtype == torch.float16 and bool((result.scales > 0).all())
    assert int(result.zero_points.max()) < 1 << bits
    if symmetric:
        assert bool((result.zero_points == 1 << (bits - 1)).all())


@given(
    st.sampled_from([2, 3, 4, 6, 8]),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=150)
def test_rounding_errs_by_half_a_scale_at_most(
    bits: int, rows: int, groups: int, size: int, symmetric: bool, outliers: bool, seed: int
) -> None:
    weight = matrix(rows, groups * size, seed, outliers)
    result = round_to_nearest(weight, bits, size, symmetric)
    check_affine(result, bits, symmetric)
    scales = result.scales.float().repeat_interleave(size, 1)
    assert bool(((weight - result.dense()).abs() <= scales * 0.5001 + 1e-6).all())
    assert bool((result.dense()[weight == 0] == 0).all())


@given(st.sampled_from([2, 3, 4]), st.booleans(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_searching_scales_never_does_worse(bits: int, symmetric: bool, seed: int) -> None:
    weight, importance = matrix(4, 64, seed), torch.rand(64) + 0.01
    plain = round_to_nearest(weight, bits, 16, symmetric)
    searched = round_to_nearest(weight, bits, 16, symmetric, search=True, importance=importance)
    check_affine(searched, bits, symmetric)
    errors = [(importance * (weight - result.dense()).square()).sum() for result in (searched, plain)]
    assert errors[0] <= errors[1] * 1.00001


@pytest.mark.parametrize("activation_order", [False, True])
@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize(("bits", "size"), [(4, 32), (4, 16), (3, 64), (8, 192), (2, 48)])
def test_gptq_beats_rounding(bits: int, size: int, search: bool, activation_order: bool) -> None:
    weight, hessian = matrix(24, 192, 3), moment(192, 4)
    options = {"damping": 0.01, "activation_order": activation_order, "search": search}
    for symmetric in (False, True):
        result = gptq_affine(weight, hessian, bits, size, symmetric, **options)
        check_affine(result, bits, symmetric)
        plain = weighted_error(weight, round_to_nearest(weight, bits, size, symmetric).dense(), hessian)
        assert weighted_error(weight, result.dense(), hessian) < 0.8 * plain


@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 3, 16]), st.booleans(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_gptq_never_loses_to_rounding(rows: int, groups: int, size: int, outliers: bool, seed: int) -> None:
    weight, hessian = matrix(rows, groups * size, seed, outliers), moment(groups * size, seed)
    result = gptq_affine(weight, hessian, 4, size, False, damping=0.01, activation_order=bool(seed % 2), search=True)
    check_affine(result, 4, False)
    plain = weighted_error(weight, round_to_nearest(weight, 4, size, False).dense(), hessian)
    assert weighted_error(weight, result.dense(), hessian) <= plain * 1.00001


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 40), st.integers(1, 3), st.integers(0, 10**6))
@settings(deadline=None, max_examples=80)
def test_palettes_take_the_nearest_entry(bits: int, groups: int, columns: int, size: int, seed: int) -> None:
    weight = matrix(groups * size, columns, seed, outliers=bool(seed % 2))
    result = palettize(weight, bits, size)
    assert result.palette.shape == (groups, 1 << bits) and result.palette.dtype == torch.float16
    assert int(result.codes.max()) < 1 << bits
    entries = result.palette.float().repeat_interleave(size, 0)
    nearest = (weight.unsqueeze(2) - entries.unsqueeze(1)).abs().amin(2)
    assert torch.equal((weight - result.dense()).abs(), nearest)


def test_few_values_need_no_error() -> None:
    weight = torch.tensor([-0.5, 0.0, 0.25, 1.0]).repeat(6, 8)
    assert torch.equal(palettize(weight, 2, 3).dense(), weight)
    assert torch.equal(palettize(torch.zeros(4, 5), 4, 2).dense(), torch.zeros(4, 5))


def test_kmeans_finds_the_best_partition_and_minds_weights() -> None:
    generator = torch.Generator().manual_seed(6)
    values, weights = torch.randn(1, 30, generator=generator), torch.rand(1, 30, generator=generator) ** 4
    order = values[0].argsort()
    x, w = values[0, order].double().numpy(), weights[0, order].double().numpy()

    def error(part: slice) -> float:
        mean = np.average(x[part], weights=w[part])
        return float((w[part] * (x[part] - mean) ** 2).sum())

    least = min(
        error(slice(0, i)) + error(slice(i, j)) + error(slice(j, k)) + error(slice(k, 30))
        for i, j, k in itertools.combinations(range(1, 30), 3)
    )
    centroids = weighted_kmeans(values, weights, 4)
    found = ((values.T.double() - centroids).square().amin(1) * weights[0]).sum()
    assert float(found) == pytest.approx(least, rel=1e-6)


def test_weights_draw_the_entries_to_what_matters() -> None:
    weight, importance = matrix(8, 64, 1), torch.full((8, 64), 1e-4)
    importance[:, :8] = 1.0
    plain, guided = palettize(weight, 3, 8), palettize(weight, 3, 8, importance)
    errors = [(result.dense() - weight)[:, :8].square().sum() for result in (plain, guided)]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("activation_order", [False, True])
def test_gptq_onto_a_palette_beats_the_palette(activation_order: bool) -> None:
    weight, hessian = matrix(32, 96, 7), moment(96, 8)
    for importance in (None, torch.rand(32, 96)):
        result = gptq_palette(weight, hessian, 3, 16, importance, damping=0.01, activation_order=activation_order)
        plain = palettize(weight, 3, 16)
        assert weighted_error(weight, result.dense(), hessian) < 0.6 * weighted_error(weight, plain.dense(), hessian)
        assert result.palette.shape == (2, 8)


def test_a_layer_that_saw_nothing_is_rounded() -> None:
    weight = matrix(4, 32, 9)
    result = gptq_affine(weight, torch.zeros(32, 32), 4, 16, False, damping=0.01, activation_order=False, search=False)
    assert torch.equal(result.dense(), round_to_nearest(weight, 4, 16, False).dense())


def test_second_moments_that_cannot_be() -> None:
    options = {"damping": 0.01, "activation_order": False, "search": False}
    with pytest.raises(StageError, match="holds NaN"):
        gptq_affine(matrix(2, 4, 0), torch.full((4, 4), np.nan), 4, 4, False, **options)
    with pytest.raises(StageError, match=r"not positive definite with damping 0\.01"):
        gptq_affine(matrix(2, 4, 0), torch.eye(4) - 2 * torch.ones(4, 4), 4, 4, False, **options)


def test_the_same_bits_every_time() -> None:
    weight, hessian = matrix(16, 64, 11), moment(64, 12)
    options = {"damping": 0.01, "activation_order": True}
    first, second = (gptq_affine(weight, hessian, 4, 16, False, search=True, **options) for _ in range(2))
    assert torch.equal(first.codes, second.codes) and torch.equal(first.scales, second.scales)
    assert torch.equal(palettes(weight, 4, 8, None), palettes(weight, 4, 8, None))
