"""Held-out predictions: folds by model, by chip and by both at once, each with everything fitted inside; intervals."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stages.devices.calibration import Array, Model

from .fitting import FORMS, fitted
from .imputing import Imputer
from .rows import Table

FOLDS, CHIP_FOLDS = 8, 4  # CHIP_FOLDS: where chips and models are held out together, in as many times as many fits
NOMINAL = 0.9
_FEW = 40  # rows of a situation that give it an interval of its own


@dataclass(frozen=True)
class HeldOut:
    """Of every row of a table, by a model that knew neither it nor its group: the logarithm of the prediction, and the
    fold in which it was held out."""

    logarithms: Array
    folds: Array


def by_groups(table: Table, groups: Sequence[str], count: int = FOLDS) -> HeldOut:
    """Groups are dealt out to folds, the largest first, so that folds are about equal."""
    fold = _dealt(groups, count)
    found = np.zeros(len(table))
    for index in range(int(fold.max()) + 1):
        found[fold == index] = _predicted(table, fold != index, fold == index)
    return HeldOut(found, fold)


def by_both(table: Table, count: int = CHIP_FOLDS) -> HeldOut:
    """Neither the row's model nor its chip was seen."""
    models, chips = _dealt(table.relatives, count), _dealt(table.chips, count)
    found = np.zeros(len(table))
    for model, chip in _pairs(models, chips):
        held = (models == model) & (chips == chip)
        found[held] = _predicted(table, (models != model) & (chips != chip), held)
    return HeldOut(found, models * count + chips)


def situation_of(table: Table, row: int, *, chip_known: bool) -> str:
    """Which interval is a row's: whether its chip was measured, the path or the unit, whether its work is published."""
    known = "known chip" if chip_known else "unknown chip"
    situation = table.situations[row]
    if path := situation.get("path"):
        return f"{known}, {path}"
    if situation["unit"] != "npu":
        return f"{known}, {situation['unit']}"
    return f"{known}, npu, {'published' if table.known[row] else 'estimated'}"


def intervals(table: Table, held: HeldOut, rows: Array, *, chip_known: bool) -> dict[str, tuple[float, float]]:
    """By situation, and by "known chip" or "unknown chip" alone for the others: the quantiles of the logarithm of what
    was measured to what was predicted, of those rows. Split conformal (arXiv:1604.04173), by situation; rows of one
    model err together, so that the guarantee is of their average alone."""
    errors = np.log(table.measured) - held.logarithms
    names = [situation_of(table, row, chip_known=chip_known) for row in range(len(table))]
    whole = "known chip" if chip_known else "unknown chip"
    found = {whole: _quantiles(errors[rows])}
    for name in sorted({names[row] for row in rows}):
        own = np.array([row for row in rows if names[row] == name])
        if len(own) >= _FEW:
            found[name] = _quantiles(errors[own])
    return found


def coverage(table: Table, held: HeldOut, *, chip_known: bool) -> float:
    """The share of rows whose interval, from the errors of the other folds alone, holds what was measured."""
    errors = np.log(table.measured) - held.logarithms
    inside = np.zeros(len(table), dtype=bool)
    for fold in np.unique(held.folds):
        found = intervals(table, held, np.flatnonzero(held.folds != fold), chip_known=chip_known)
        for row in np.flatnonzero(held.folds == fold):
            low, high = interval_of(found, situation_of(table, row, chip_known=chip_known))
            inside[row] = low <= errors[row] <= high
    return float(inside.mean())


def interval_of(found: dict[str, tuple[float, float]], situation: str) -> tuple[float, float]:
    return found.get(situation) or found[situation.split(",")[0]]


def prepared(train: Table, others: Sequence[Table]) -> list[Table]:
    """`train` and the others with what their rows lack, as estimated from `train` alone."""
    if "given_pixels" not in train.features:
        return [train, *others]
    imputer = Imputer.fit(train)
    return [imputer.fill(table) for table in (train, *others)]


def _predicted(table: Table, train: Array, test: Array) -> Array:
    train_table, test_table = prepared(table.take(np.flatnonzero(train)), [table.take(np.flatnonzero(test))])
    model = Model.of(fitted(train_table, FORMS[table.quantity]))
    return model.logarithms(test_table.features, test_table.situations)


def _dealt(groups: Sequence[str], count: int) -> Array:
    """The fold of each row."""
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    filled = [0] * min(count, len(sizes))
    fold: dict[str, int] = {}
    for group in sorted(sizes, key=lambda name: (-sizes[name], zlib.crc32(name.encode()))):
        fold[group] = min(range(len(filled)), key=filled.__getitem__)
        filled[fold[group]] += sizes[group]
    return np.array([fold[group] for group in groups])


def _pairs(models: Array, chips: Array) -> Iterator[tuple[int, int]]:
    yield from sorted({(int(model), int(chip)) for model, chip in zip(models, chips, strict=True)})


def _quantiles(errors: Array) -> tuple[float, float]:
    """With the conformal correction for their number."""
    tail = (1 - NOMINAL) / 2
    ranks = np.sort(errors)
    below = max(int(np.floor((len(ranks) + 1) * tail)) - 1, 0)
    return float(f"{ranks[below]:.4g}"), float(f"{ranks[len(ranks) - 1 - below]:.4g}")
