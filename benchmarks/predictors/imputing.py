"""Arithmetic of models of which none is published: a ridge regression of its logarithm on what a row has."""

from dataclasses import dataclass, replace

import numpy as np

from stages.devices.calibration import Array

from .rows import Table


@dataclass(frozen=True)
class Imputer:
    """weights (columns,), of the logarithm of 10^9 operations."""

    weights: Array

    @classmethod
    def fit(cls, table: Table) -> "Imputer":
        known = table.take(np.flatnonzero(table.known))
        columns, target = _columns(known), np.log(known.features["gigaflops"])
        counts: dict[str, int] = {}
        for model in known.models:
            counts[model] = counts.get(model, 0) + 1
        weight = np.array([1 / counts[model] for model in known.models])[:, None]  # each model counts the same
        gram = columns.T @ (weight * columns) + 0.1 * np.eye(columns.shape[1])
        return cls(np.linalg.solve(gram, columns.T @ (weight[:, 0] * target)))

    def fill(self, table: Table) -> Table:
        """With `gigaflops` everywhere, and `known` and the Hexagon's version as features for the trees."""
        estimated = np.exp(_columns(table) @ self.weights)
        version = [float(situation.get("htp", "nan")) for situation in table.situations]
        features = {
            **table.features,
            "gigaflops": np.where(table.known, table.features["gigaflops"], estimated),
            "known": np.where(table.known, 2.0, 1.0),
            "version": np.array(version),
        }
        return replace(table, features=features)


def _columns(table: Table) -> Array:
    parameters, pixels = table.features["given_parameters"], table.features["given_pixels"]
    has_parameters, has_pixels = np.isfinite(parameters), np.isfinite(pixels)
    return np.stack(
        [
            np.ones(len(table)),
            np.where(has_parameters, np.log(np.where(has_parameters, parameters, 1.0)) - 16.5, 0.0),
            ~has_parameters,
            np.where(has_pixels, np.log(np.where(has_pixels, pixels, 1.0)) - 11.5, 0.0),
            ~has_pixels,
            np.log(table.features["operators"]) - 5.5,
            table.features["text"],
            table.features["one_step"],
        ],
        axis=1,
    ).astype(np.float64)
