"""GPTQ: the arithmetic is that of the paper, in any order and blocks; degenerate weights and inputs come out right."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import StageError
from stages.quantizers.gptq import gptq_affine, gptq_palette
from stages.quantizers.palettize import palettes
from stages.quantizers.results import Affine, Palette
from stages.quantizers.rtn import affine_grid, decode, encode, round_to_nearest

torch.set_num_threads(1)
DAMPING = 0.01


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * 0.05).half().float()


def moment(columns: int, seed: int, samples: int = 300) -> torch.Tensor:
    """Correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -1, columns)[:, None]
    inputs = torch.randn(samples, columns, generator=generator) @ mixing
    return inputs.T @ inputs / samples


def papers_gptq(weight: torch.Tensor, moment: torch.Tensor, bits: int, size: int, ordered: bool) -> torch.Tensor:
    """Column by column as the paper has it, in float64: round, spread the error by the inverse, drop the column."""
    hessian = moment.double()
    hessian = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    order = hessian.diagonal().argsort(descending=True, stable=True) if ordered else torch.arange(len(hessian))
    rest, codes = weight.double().clone(), torch.zeros(weight.shape, dtype=torch.uint8)
    groups = weight.reshape(len(weight), -1, size)
    scales, zeros = affine_grid(groups, bits, False, False, None)
    left = order.tolist()
    for position, column in enumerate(order.tolist()):
        group = column // size
        if not ordered and position % size == 0:
            part = rest[:, position : position + size].float()
            scales[:, group], zeros[:, group] = affine_grid(part, bits, False, False, None)
        scale, zero = scales[:, group], zeros[:, group]
        codes[:, column] = encode(rest[:, column].float(), scale, zero, bits)
        error = rest[:, column] - decode(codes[:, column], scale, zero).double()
        inverse = torch.linalg.inv(hessian[left][:, left])
        rest[:, left] -= (error / inverse[0, 0])[:, None] * inverse[0]
        left = left[1:]
    return Affine(codes, scales, zeros).dense()


CASES = [(48, 16, False), (48, 16, True), (150, 50, False), (300, 150, False), (264, 24, False), (20, 1, False)]


@pytest.mark.parametrize(("columns", "size", "ordered"), CASES)
def test_the_pass_is_the_papers(columns: int, size: int, ordered: bool) -> None:
    """Groups smaller and larger than a block, that divide it or not; a code at a tie may differ."""
    weight, second = matrix(12, columns, 1), moment(columns, 2, 2 * columns + 50)
    found = gptq_affine(weight, second, 3, size, False, damping=DAMPING, activation_order=ordered, search=False)
    expected = papers_gptq(weight, second, 3, size, ordered)
    close = torch.isclose(found.dense(), expected, rtol=0, atol=1e-6).all(1)
    assert close.float().mean() >= 0.8


def error(weight: torch.Tensor, dense: torch.Tensor, second: torch.Tensor) -> float:
    difference = (weight - dense).double()
    return float(((difference @ second.double()) * difference).sum())


def both(weight: torch.Tensor, second: torch.Tensor, ordered: bool, rows: int = 1) -> list[Affine | Palette]:
    options = {"damping": DAMPING, "activation_order": ordered}
    return [
        gptq_affine(weight, second, 4, weight.shape[1], False, search=False, refinement=2, **options),
        gptq_palette(weight, second, 4, rows, None, refinement=2, **options),
    ]


@pytest.mark.parametrize("ordered", [False, True])
class TestDegenerate:
    def test_rows_of_zeros_stay_zero(self, ordered: bool) -> None:
        weight = matrix(6, 40, 3)
        weight[[0, 4]] = 0
        for result in both(weight, moment(40, 4), ordered):
            assert not result.dense()[[0, 4]].any() and result.dense().isfinite().all()
        for result in both(torch.zeros(3, 40), moment(40, 4), ordered):
            assert not result.dense().any()

    def test_an_outlier_is_kept(self, ordered: bool) -> None:
        weight = matrix(6, 40, 5)
        weight[2, 7] = 1e4
        for result in both(weight, moment(40, 6), ordered):
            dense = result.dense()
            assert float(dense[2, 7]) == pytest.approx(1e4, rel=0.04)
            others = [0, 1, 3, 4, 5]
            assert (dense - weight)[others].abs().max() < 0.05

    def test_a_single_column(self, ordered: bool) -> None:
        weight = matrix(9, 1, 7)
        for result in both(weight, torch.tensor([[2.5]]), ordered):
            torch.testing.assert_close(result.dense(), weight, rtol=2e-3, atol=1e-4)

    def test_dead_inputs_change_nothing(self, ordered: bool) -> None:
        """Columns that calibration never saw: rounded as they are, and the others as if they were not there."""
        weight, second = matrix(6, 32, 8), moment(32, 9)
        second[:, 10:14] = second[10:14] = 0
        plain = round_to_nearest(weight, 4, 32, False)
        result = gptq_affine(weight, second, 4, 32, False, damping=DAMPING, activation_order=True, search=False)
        assert torch.equal(result.codes[:, 10:14], plain.codes[:, 10:14])
        dead = gptq_affine(weight, 0 * second, 4, 8, False, damping=DAMPING, activation_order=ordered, search=False)
        assert torch.equal(dead.dense(), round_to_nearest(weight, 4, 8, False).dense())

    def test_what_cannot_be_is_said(self, ordered: bool) -> None:
        options = {"damping": DAMPING, "activation_order": ordered, "search": False}
        weight, second = matrix(2, 8, 0), moment(8, 1)
        bad = second.clone()
        bad[3, 3] = float("nan")
        with pytest.raises(StageError, match="second moment holds NaN"):
            gptq_affine(weight, bad, 4, 8, False, **options)
        with pytest.raises(StageError, match=r"groups of 16 columns do not divide a weight of 8\n"):
            gptq_affine(weight, second, 4, 16, False, **options)
        weight[1, 2] = float("inf")
        with pytest.raises(StageError, match="a weight holds NaN or infinite values"):
            gptq_affine(weight, second, 4, 8, False, **options)


@given(st.integers(1, 6), st.integers(1, 70), st.integers(1, 4), st.booleans(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_it_never_loses(rows: int, columns: int, bits: int, ordered: bool, seed: int) -> None:
    """To rounding on the same kind of grid, whatever the shape; fewer samples than columns are enough."""
    weight, second = matrix(rows, columns, seed), moment(columns, seed, 5)
    options = {"damping": DAMPING, "activation_order": ordered}
    found = gptq_palette(weight, second, bits, rows, torch.ones(rows, columns), refinement=1, **options)
    entries = palettes(weight, bits, rows, None).float()
    plain = (weight.unsqueeze(-1) - entries[0]).abs().argmin(-1)
    assert error(weight, found.dense(), second) <= error(weight, entries[0][plain], second) * 1.05 + 1e-6
    if bits > 1:
        affine = gptq_affine(weight, second, bits, columns, False, search=False, refinement=1, **options)
        rounded = round_to_nearest(weight, bits, columns, False).dense()
        assert error(weight, affine.dense(), second) <= error(weight, rounded, second) * 1.05 + 1e-6
