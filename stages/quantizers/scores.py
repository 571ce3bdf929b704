"""What an error of a weight costs by second order, without running the model: its Fisher score, in nats a token.

The Fisher information is taken as a product of one factor of outputs and one of inputs (K-FAC, arXiv:1503.05671):
1/2 sum over rows of g (e H e^T), with H the second moment of the layer's input, and g a row's share of the measured
diagonal. Unlike the diagonal alone, it sees that errors of a row make up for each other, which is what GPTQ is for.
"""

from collections.abc import Mapping

import torch

from stages.quantizers.choices import Role
from stages.quantizers.layers import Layer
from stages.quantizers.statistics import StatisticsReader


class Scores:
    """Of the weights `layers`. An embedding, which has no second moment, has the diagonal; a convolution that is no
    matrix has no Fisher information of its own, and the mean of the tower's stands for it."""

    def __init__(self, statistics: StatisticsReader, layers: Mapping[str, Layer]):
        self._statistics, self._layers = statistics, layers
        self._spatial: float | None = None

    def of(self, name: str, error: torch.Tensor) -> float:
        """error: float32 (out, in)."""
        error, role = error.double(), self._layers[name].role
        if role is Role.spatial:
            return 0.5 * self._of_spatial() * float(error.square().sum())
        fisher = self._statistics.fisher(name).flatten(1).double()
        if role is Role.embeddings:
            return 0.5 * float((fisher * error.square()).sum())
        moment = self._statistics.second_moment(name).double()
        trace = float(moment.diagonal().sum())
        if trace <= 0:
            return 0.0
        rows = ((error @ moment) * error).sum(1)
        return 0.5 * float((fisher.sum(1) / trace * rows).sum())

    def _of_spatial(self) -> float:
        if self._spatial is None:
            tower = [name for name, layer in self._layers.items() if layer.role is Role.tower]
            means = [float(self._statistics.fisher(name).double().mean()) for name in tower]
            self._spatial = sum(means) / len(means) if means else 0.0
        return self._spatial
