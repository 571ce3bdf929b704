"""What public measurements say of times and memory: a sum of physical terms, effects of chips, small trees; intervals.

    model = calibration().models["encode"]
    print(model.estimate({"operators": 300, "gigaflops": 40.0, ...}, {"unit": "npu", ...}, key).value)

A model's logarithm is

    exponent * log(sum over terms of exp(coefficient of the situation) * feature) + effects of the situation + trees

A situation names the levels that are known (runtime, unit, precision, chip). Coefficients and effects are sums over
them, shrunk towards 0 when they were fitted, so that a level that was never measured leaves those of the others: an
unknown chip is the mean of those of its Hexagon, a chip without one the mean of all. All coefficients are exponentials,
and the trees never fall in what is work: more of it is never faster.

calibration.json is written by `python benchmarks/predictors.py --write`, which has the data, their licence and the
errors on models and chips that were held out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("calibration.json")
MISSING = -9.0  # of a tree's feature that is not known: below all logarithms that occur

Levels = Mapping[str, str]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A prediction, and an interval that holds 90 % of what is then measured, where it is like what was measured; or,
    where it is judged, an interval that no errors on what was held out stand behind."""

    value: float
    low: float
    high: float
    judged: bool = False

    def times(self, factor: float) -> "Estimate":
        """In other units."""
        return replace(self, value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def inverse(self) -> "Estimate":
        """1 / x: tokens a second of seconds a token."""
        return replace(self, value=1 / self.value, low=1 / self.high, high=1 / self.low)

    def plus(self, other: "Estimate") -> "Estimate":
        """The sum, its ends those of both: as if both erred together and alike. That is wider than if they erred apart,
        and neither is exact: ends of intervals do not add up."""
        judged = self.judged or other.judged
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high, judged)

    def by(self, other: "Estimate") -> "Estimate":
        """The product, its ends those of both."""
        judged = self.judged or other.judged
        return Estimate(self.value * other.value, self.low * other.low, self.high * other.high, judged)

    def to_json(self) -> dict[str, float | bool]:
        """{"value", "low", "high"}, and {"judged": true} where the interval is a judgement."""
        ends = {name: float(f"{getattr(self, name):.6g}") for name in ("value", "low", "high")}
        return {**ends, "judged": True} if self.judged else ends


@dataclass(frozen=True)
class Trees:
    """Regression trees of one depth or another, side by side in arrays (trees, nodes). A leaf is its own child.

    features: names of what they look at: a feature, whose logarithm it is, or `key=level`, 1 where the situation has
    it and 0 elsewhere.
    """

    features: tuple[str, ...]
    feature: NDArray[np.int64]
    threshold: Array
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: Array
    depth: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Trees":
        trees = values["trees"]
        nodes = max(len(tree["value"]) for tree in trees)

        def padded(key: str, kind: type) -> Any:
            return np.array([tree[key] + [0] * (nodes - len(tree[key])) for tree in trees], dtype=kind)

        return cls(
            tuple(values["features"]),
            padded("feature", np.int64),
            padded("threshold", np.float64),
            padded("left", np.int64),
            padded("right", np.int64),
            padded("value", np.float64),
            int(values["depth"]),
        )

    def predict(self, inputs: Array) -> Array:
        """inputs (rows, features) -> (rows,), the sum of all trees."""
        rows = np.arange(len(inputs))[:, None]
        trees = np.arange(len(self.feature))[None, :]
        node = np.zeros((len(inputs), len(self.feature)), dtype=np.int64)
        for _ in range(self.depth):
            at = inputs[rows, self.feature[trees, node]] <= self.threshold[trees, node]
            node = np.where(at, self.left[trees, node], self.right[trees, node])
        found: Array = self.value[trees, node].sum(axis=1)
        return found


@dataclass(frozen=True)
class Model:
    """Of one quantity, as the module says. terms: {feature: {"base": logarithm, key: {level: logarithm}}}; a key of two
    levels is "chip,unit", and its level "75/57,npu". effects: as a term, of the whole. intervals: {situation: [lowest,
    highest]}, logarithms of what was measured to what was predicted."""

    terms: Mapping[str, Mapping[str, Any]]
    effects: Mapping[str, Mapping[str, float]]
    exponent: float
    trees: Trees | None
    intervals: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Model":
        trees = Trees.of(values["trees"]) if values.get("trees") else None
        intervals = {name: (low, high) for name, (low, high) in values.get("intervals", {}).items()}
        return cls(values["terms"], values["effects"], values["exponent"], trees, intervals)

    def logarithms(self, features: Mapping[str, Array], situations: Sequence[Levels]) -> Array:
        """Of all rows: each feature (rows,), a situation each."""
        total = np.zeros(len(situations))
        for name, coefficients in self.terms.items():
            total += features[name] * np.exp(_coefficient(coefficients, situations))
        found = self.exponent * np.log(total) + _coefficient(self.effects, situations)
        if self.trees:
            found = found + self.trees.predict(inputs(self.trees.features, features, situations))
        return found

    def estimate(self, features: Mapping[str, float], situation: Levels, interval: str, wider: float = 1.0) -> Estimate:
        """Of one row. interval: which of `intervals`; wider: by what its logarithms are multiplied, a judgement."""
        row = {name: np.array([value], dtype=np.float64) for name, value in features.items()}
        value = float(np.exp(self.logarithms(row, [situation])[0]))
        low, high = (float(np.exp(wider * bound)) for bound in self.intervals[interval])
        return Estimate(value, value * min(low, 1.0), value * max(high, 1.0), wider != 1.0)


def inputs(names: Sequence[str], features: Mapping[str, Array], situations: Sequence[Levels]) -> Array:
    """What trees look at, (rows, names)."""
    columns = []
    for name in names:
        key, _, level = name.partition("=")
        if level:
            columns.append(np.array([float(situation.get(key) == level) for situation in situations]))
        else:
            values = features[key]
            known = np.isfinite(values) & (values > 0)
            columns.append(np.where(known, np.log(np.where(known, values, 1.0)), MISSING))
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Calibration:
    """models: encode, decode, prefill, first_token, memory. chips: of each public device's name, its chip, as
    "Hexagon's version/number". constants: what else was measured, by name."""

    models: Mapping[str, Model]
    chips: Mapping[str, str]
    constants: Mapping[str, float]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Calibration":
        models = {name: Model.of(model) for name, model in values["models"].items()}
        return cls(models, values["chips"], values["constants"])


@lru_cache(maxsize=1)
def calibration() -> Calibration:
    """The one that ships."""
    return Calibration.of(json.loads(FILE.read_text(encoding="utf-8")))


def level_of(key: str, situation: Levels) -> str | None:
    """The situation's level of a key, or of several joined by commas; None where one is not known."""
    parts = [situation.get(part) for part in key.split(",")]
    return None if None in parts else ",".join(part for part in parts if part is not None)


def _coefficient(coefficients: Mapping[str, Any], situations: Sequence[Levels]) -> Array:
    found = np.full(len(situations), float(coefficients.get("base", 0.0)))
    for key, levels in coefficients.items():
        if key != "base":
            found += np.array([_effect(key, levels, situation) for situation in situations])
    return found


def _effect(key: str, levels: Mapping[str, float], situation: Levels) -> float:
    """Of the situation's level; 0 where it is not known. A Hexagon that was not measured is as the nearest version."""
    level = level_of(key, situation)
    if level is None or level in levels or key != "htp" or not levels:
        return levels.get(level, 0.0) if level is not None else 0.0
    return levels[min(levels, key=lambda other: (abs(float(other) - float(level)), other))]
