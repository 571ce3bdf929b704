"""Fits the models of stages/devices/calibration.py: terms and effects by gradients, then trees on what they leave."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor

from stages.devices.calibration import Array, Model, inputs, level_of

from .rows import Table

# Of the robust loss: errors of the logarithm beyond it count linearly. UNKNOWN: what a row counts whose arithmetic is
# estimated, where one that is published counts 1.
_ROBUST, _UNKNOWN = 0.3, 0.3
_HUBER, _RATE = 0.2, 0.2  # of the trees


@dataclass(frozen=True)
class Form:
    """What a quantity's model looks like. terms: by feature, the logarithm that its coefficient begins with and is held
    to, and the keys whose levels change it. effects: keys of the whole. trees: what the trees look at, and whether they
    may not fall in it; count: of them. exponent: of the terms' sum, below 1 where trees that may not fall add slope.
    """

    terms: Mapping[str, tuple[float, tuple[str, ...]]]
    effects: tuple[str, ...]
    trees: Mapping[str, bool] = field(default_factory=dict)
    count: int = 0
    exponent: float = 1.0


_RUNTIMES = (
    "genie",
    "geniex_qairt",
    "onnx",
    "precompiled_qnn_onnx",
    "qnn_context_binary",
    "qnn_dlc",
    "tflite",
    "voice_ai",
)
_TOWER_TREES = {
    "gigaflops": True,
    "operators": True,
    "given_parameters": True,
    "given_pixels": True,
    "known": False,
    "version": False,
    **{f"runtime={name}": False for name in _RUNTIMES},
    **{f"precision={name}": False for name in ("float", "w8a16", "w8a8")},
    **{f"unit={name}": False for name in ("npu", "gpu", "cpu")},
}
FORMS = {
    "encode": Form(
        terms={
            "launch": (-2.0, ("runtime",)),
            "operators": (-5.5, ("runtime",)),
            "gigaflops": (-2.2, ("unit", "precision", "unit,precision", "runtime")),
            "megaparameters": (-6.0, ("precision",)),
            "megapixels": (0.0, ("precision",)),
        },
        effects=("form", "htp", "chip", "device", "chip,precision"),
        trees=_TOWER_TREES,
        count=100,
        exponent=0.8,
    ),
    "memory": Form(
        terms={
            "launch": (2.0, ("runtime", "unit")),
            "operators": (-4.0, ("runtime",)),
            "gigaflops": (-3.0, ("runtime",)),
            "megaparameters": (0.0, ("precision", "runtime")),
            "megapixels": (3.0, ("precision", "runtime")),
        },
        effects=("form", "htp", "chip", "device"),
        trees=_TOWER_TREES,
        count=100,
        exponent=0.8,
    ),
    "decode": Form(
        terms={
            "operators": (-3.0, ("path",)),
            "weights_ms": (0.5, ("path", "precision", "kind")),
            "cache_ms": (0.5, ("path", "chip,unit")),
        },
        effects=("chip,unit", "chip,path", "chip"),
    ),
    "prefill": Form(
        terms={
            "operators": (-5.0, ("path",)),
            "compute": (-2.0, ("path", "precision", "kind")),
            "attention": (-1.0, ("path", "chip,unit")),
        },
        effects=("chip,unit", "chip,path", "chip"),
    ),
    "first_token": Form(
        terms={
            "launch": (2.0, ("path",)),
            "compute": (-2.0, ("path", "precision", "kind")),
            "attention": (-1.0, ("path", "chip,unit")),
        },
        effects=("chip,unit", "chip,path", "chip"),
    ),
}
# How strongly each is held to 0: 1 / (2 s^2) of an effect whose usual size is s.
_SIZES = {
    "form": 0.5,
    "htp": 0.5,
    "chip": 0.4,
    "device": 0.15,
    "chip,precision": 0.25,
    "chip,unit": 0.4,
    "chip,path": 0.3,
}
_COEFFICIENT_SIZE, _BASE_SIZE = 1.0, 3.0


def fitted(table: Table, form: Form) -> dict[str, Any]:
    """The model's JSON, without intervals."""
    values = _terms(table, form) | {"exponent": form.exponent}
    if form.count:
        left = np.log(table.measured) - Model.of(values).logarithms(table.features, table.situations)
        values["trees"] = _trees(table, form, left)
    return values


def _terms(table: Table, form: Form) -> dict[str, Any]:
    torch.set_num_threads(1)
    parameters: list[torch.Tensor] = []
    penalties: list[float] = []

    def parameter(start: Array, size: float) -> torch.Tensor:
        found = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        parameters.append(found)
        penalties.append(0.5 / size**2)
        return found

    def levels(key: str) -> tuple[list[str], torch.Tensor]:
        found = [level_of(key, situation) for situation in table.situations]
        names = sorted({name for name in found if name is not None})
        index = {name: position for position, name in enumerate(names)}
        return names, torch.tensor([index.get(name, len(names)) for name in found])  # type: ignore[arg-type]

    spec: dict[str, dict[str, tuple[list[str], torch.Tensor, torch.Tensor]]] = {}
    bases: dict[str, torch.Tensor] = {}
    starts: list[float] = []
    for name, (start, keys) in form.terms.items():
        bases[name] = parameter(np.array([0.0]), _BASE_SIZE)
        starts.append(start)
        spec[name] = {}
        for key in keys:
            names, index = levels(key)
            spec[name][key] = (names, index, parameter(np.zeros(len(names)), _COEFFICIENT_SIZE))
    overall = {key: (*levels(key),) for key in form.effects}
    whole = {
        key: (names, index, parameter(np.zeros(len(names)), _SIZES[key])) for key, (names, index) in overall.items()
    }

    features = {name: torch.tensor(table.features[name]) for name in form.terms}
    target = torch.tensor(np.log(table.measured))
    weights = torch.tensor(np.where(table.known, 1.0, _UNKNOWN))
    zero = torch.zeros(1, dtype=torch.float64)

    def total(entries: Mapping[str, tuple[list[str], torch.Tensor, torch.Tensor]]) -> torch.Tensor | float:
        return sum((torch.cat([values, zero])[index] for _, index, values in entries.values()), start=zero)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        sums = sum(
            features[name] * torch.exp(start + bases[name] + total(spec[name]))
            for (name, (start, _)) in form.terms.items()
        )
        error = torch.log(sums) + total(whole) - target
        found = (weights * (torch.sqrt(1 + (error / _ROBUST) ** 2) - 1)).sum()
        found = found + sum(strength * (each**2).sum() for strength, each in zip(penalties, parameters, strict=True))
        found.backward()
        return found

    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe", history_size=30)
    optimizer.step(loss)
    return {
        "terms": {
            name: {
                "base": _short(start + float(bases[name].detach())),
                **{key: _named(names, values) for key, (names, _, values) in spec[name].items()},
            }
            for name, (start, _) in form.terms.items()
        },
        "effects": {key: _named(names, values) for key, (names, _, values) in whole.items()},
    }


def _trees(table: Table, form: Form, left: Array) -> dict[str, Any]:
    """Gradient-boosted regression trees on Huber's loss (doi:10.1214/aos/1013203451), as plain numbers: each tree is a
    least-squares fit, by the library, to what those before it left, cut off at _HUBER. Losses whose leaves are medians
    would not keep the trees from falling."""
    names = list(form.trees)
    columns = inputs(names, table.features, table.situations)
    found = np.full(len(left), float(np.median(left)))
    base = {"feature": [0], "threshold": [0.0], "left": [0], "right": [0], "value": [_short(found[0])]}
    trees, depth = [base], 0
    for number in range(form.count):
        boosted = HistGradientBoostingRegressor(
            learning_rate=_RATE,
            max_iter=1,
            max_leaf_nodes=15,
            min_samples_leaf=40,
            max_features=0.4,
            early_stopping=False,
            monotonic_cst=[int(form.trees[name]) for name in names],
            random_state=number,
        ).fit(columns, np.clip(left - found, -_HUBER, _HUBER))
        found += boosted.predict(columns)
        predictor = boosted._predictors[0][0]
        trees.append(_tree(predictor.nodes, float(np.ravel(boosted._baseline_prediction)[0])))
        depth = max(depth, int(predictor.get_max_depth()))
    return {"features": names, "depth": depth, "trees": trees}


def _tree(nodes: Any, more: float) -> dict[str, list[Any]]:
    """more: what is added in every leaf."""
    leaf = nodes["is_leaf"].astype(bool)
    own = np.arange(len(nodes))
    return {
        "feature": np.where(leaf, 0, nodes["feature_idx"]).tolist(),
        "threshold": [_short(value) for value in np.where(leaf, 0.0, nodes["num_threshold"])],
        "left": np.where(leaf, own, nodes["left"]).tolist(),
        "right": np.where(leaf, own, nodes["right"]).tolist(),
        "value": [_short(value) for value in np.where(leaf, nodes["value"] + more, 0.0)],
    }


def _named(names: list[str], values: torch.Tensor) -> dict[str, float]:
    found = {name: _short(value) for name, value in zip(names, values.detach().tolist(), strict=True)}
    return {name: value for name, value in found.items() if value}


def _short(value: float) -> float:
    return float(f"{value:.4g}") if abs(value) >= 5e-4 else 0.0
