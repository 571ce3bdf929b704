"""Coordinate descent and refitting after GPTQ: never worse, usually much better; and palettes of vectors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.quantizers.gptq import gptq_affine, gptq_palette
from stages.quantizers.palettize import palettize
from stages.quantizers.refine import row_errors

SHAPES = st.tuples(st.sampled_from([8, 16, 24]), st.sampled_from([16, 48, 64]))


def drawn(rows: int, columns: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the second moment of inputs that are correlated and of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
    inputs *= torch.linspace(0.1, 3, columns) ** spread
    return weight, inputs.T @ inputs / len(inputs)


@given(shape=SHAPES, bits=st.sampled_from([2, 3, 4, 8]), symmetric=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_no_row_of_an_affine_weight_gets_worse(shape: tuple[int, int], bits: int, symmetric: bool, seed: int) -> None:
    weight, moment = drawn(*shape, seed)
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(len(moment))

    def errors(passes: int) -> torch.Tensor:
        settings = {"damping": 0.01, "activation_order": False, "search": False}
        result = gptq_affine(weight, moment, bits, 16, symmetric, **settings, refinement=passes)
        return row_errors(weight, result.dense(), damped)

    assert (errors(3) <= errors(0) * (1 + 1e-4) + 1e-6).all()


@given(
    shape=SHAPES,
    bits=st.sampled_from([1, 2, 3, 4]),
    vector=st.sampled_from([1, 2, 4]),
    scaled=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_no_group_of_a_palette_gets_worse(
    shape: tuple[int, int], bits: int, vector: int, scaled: bool, seed: int
) -> None:
    weight, moment = drawn(*shape, seed)
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(len(moment))

    def errors(passes: int) -> torch.Tensor:
        result = gptq_palette(
            weight,
            moment,
            bits,
            8,
            None,
            damping=0.01,
            activation_order=True,
            refinement=passes,
            channel_scale=scaled and vector == 1,
            vector=vector,
        )
        assert result.codes.shape == (len(weight) // vector, weight.shape[1])
        return row_errors(weight, result.dense(), damped).reshape(-1, 8).sum(1)

    assert (errors(3) <= errors(0) * (1 + 1e-4) + 1e-6).all()


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.98), (2, 0.9)])
def test_what_it_gains(bits: int, gain: float) -> None:
    weight, moment = drawn(64, 128, 5)
    settings = {"damping": 0.01, "activation_order": True}
    plain, refined = (
        float(
            row_errors(
                weight, gptq_palette(weight, moment, bits, 16, None, **settings, refinement=n).dense(), moment
            ).sum()
        )
        for n in (0, 4)
    )
    assert refined < gain * plain


@given(vector=st.sampled_from([2, 4, 8]), bits=st.sampled_from([1, 3, 6]), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_vectors_of_few_kinds_are_found_exactly(vector: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(2, vector, generator=generator).half().float()
    which = torch.randint(0, 2, (6, 20), generator=generator)
    weight = kinds[which].transpose(1, 2).reshape(6 * vector, 20)
    result = palettize(weight, bits, len(weight), vector=vector)
    assert result.vector == vector and result.palette.shape == (1, 1 << bits, vector)
    assert torch.equal(result.dense(), weight)


def test_pairs_hold_more_than_single_values_of_as_many_bits() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    single, pairs = palettize(weight, 2, 64), palettize(weight, 4, 64, vector=2)
    assert (pairs.dense() - weight).square().mean() < 0.97 * (single.dense() - weight).square().mean()


def test_channel_scales_serve_rows_of_different_sizes() -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(2)) * torch.logspace(-2, 1, 32).unsqueeze(1)
    plain, scaled = (palettize(weight, 3, 32, channel_scale=each) for each in (False, True))
    errors = [((each.dense() - weight).square().mean(1) / weight.square().mean(1)).mean() for each in (plain, scaled)]
    assert errors[1] < 0.1 * errors[0]
