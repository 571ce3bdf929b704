"""The search for an allocation: a choice for each weight, within a size, or the smallest that keeps a divergence.

The table's costs are of weights alone, and at few bits errors add up otherwise. So the knapsack's solution is measured
as a whole model, and improved in its own context: around a solution x the divergence of x + d is about

    KL(x) + sum over weights of (gradient of KL at x) . d + (curvature of that weight alone) d^2

which is again a sum over weights, and again a knapsack (sequential quadratic programming, with the curvature raised
until a step is a gain, as Levenberg and Marquardt do). One gradient prices every candidate of every weight. What one
half of the questions found, the other half judges.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.quantizers.choices import Choice
from stages.quantizers.knapsack import solve
from stages.quantizers.replaced import Measured, ReplacedModel
from stages.quantizers.weights import Weights
from stages.schema import Budget

_ROUNDS = 6
_DAMPING = 64.0  # to begin with; measured on the reference model, 1 to 16 went too far and 256 nowhere
_NEAR = 2.5  # how many times as large or small as now a weight may become in one step
_FAR = 1e6
_BISECTIONS, _SHRINKS, _SHRINK = 8, 4, 0.97


@dataclass(frozen=True)
class Offer:
    """What a weight could become; cost: in nats an answer token, of that weight alone; score: before measurement."""

    choice: Choice
    bytes: int
    score: float
    cost: float


@dataclass(frozen=True)
class Allocated:
    """A choice for each weight; bytes: of the whole model; cost: the sum of the table's. searched, judged: the measured
    whole model on the two halves of the questions; None where nothing is measured."""

    chosen: Mapping[str, Offer]
    bytes: int
    cost: float
    searched: Measured | None = None
    judged: Measured | None = None

    @property
    def kl(self) -> float:
        """The greater of both halves'; where nothing is measured the estimate."""
        found = [each.kl for each in (self.searched, self.judged) if each]
        return max(found) if found else self.cost

    @property
    def high(self) -> float:
        """What the divergence is hardly above: the greater of both halves' kl and two standard errors."""
        found = [each.high for each in (self.searched, self.judged) if each]
        return max(found) if found else self.cost


class Search:
    """offers: of each weight; judges: one on which divergence is lowered, and one by which what was found is judged."""

    def __init__(
        self,
        weights: Weights,
        offers: Mapping[str, Sequence[Offer]],
        judges: tuple[ReplacedModel, ReplacedModel] | None,
        work: Workspace,
    ):
        self._weights, self.offers, self._judges, self._work = weights, offers, judges, work
        self.smallest = weights.other_bytes + sum(min(offer.bytes for offer in each) for each in offers.values())
        self.largest = weights.other_bytes + sum(max(offer.bytes for offer in each) for each in offers.values())

    def within(self, budget: int, rounds: int = _ROUNDS) -> Allocated:
        """The least divergence that was found in `budget` bytes. Raises StageError where nothing is that small."""
        if budget < self.smallest:
            raise StageError(
                f"the budget is {budget:,} bytes, {self._bits(budget):.3f} bits a parameter; with the smallest "
                f"candidate of every weight the model takes {self.smallest:,} bytes",
                hint=f"Set quantize.budget.bytes={self.smallest} or more, or quantize.budget.bits="
                f"{math.ceil(1000 * self._bits(self.smallest)) / 1000}; or give conf/sensitivity smaller candidates.",
            )
        first = self.measured(self._solved(budget))
        return self._refined(first, budget, rounds) if self._judges else first

    def unimproved(self, budget: int) -> Allocated:
        """The knapsack's solution, judged; budget: no less than self.smallest."""
        found = self._sized(self._solved(budget))
        return replace(found, judged=self._judges[1].measured(self._dense(found.chosen))) if self._judges else found

    def smallest_within(self, kl: float, budget: int) -> Allocated:
        """The fewest bytes, at most `budget`, whose divergence on both halves is at most `kl`, two standard errors
        included. Raises StageError."""
        if not self._judges:
            raise StageError(
                "quantize.budget.kl bounds a divergence, and the sensitivity measured nothing",
                hint="Set sensitivity.measure=kl, for a model that fits in memory, or bound quantize.budget.bits.",
            )
        best = self.measured(self._solved(budget)) if budget >= self.smallest else self.within(budget)
        if best.high > kl:
            best = self.within(budget)
        if best.high > kl:
            raise StageError(
                f"no allocation of at most {best.bytes:,} bytes was found whose divergence is at most {kl:g}, two "
                f"standard errors included; the least was {best.high:.3g}",
                hint=f"Set quantize.budget.kl={best.high:.2g} or more, or a larger quantize.budget.bytes.",
            )
        low, high = math.log(self.smallest), math.log(best.bytes)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            found = self.measured(self._solved(int(math.exp(middle))))
            if found.high <= kl:
                best, high = found, middle
            else:
                low = middle
        return self._shrunk(best, kl)

    def measured(self, chosen: Mapping[str, Offer]) -> Allocated:
        found = self._sized(chosen)
        if not self._judges:
            return found
        searched, judged = (judge.measured(self._dense(chosen)) for judge in self._judges)
        return replace(found, searched=searched, judged=judged)

    def _sized(self, chosen: Mapping[str, Offer]) -> Allocated:
        size = self._weights.other_bytes + sum(offer.bytes for offer in chosen.values())
        return Allocated(chosen, size, sum(offer.cost for offer in chosen.values()))

    def _dense(self, chosen: Mapping[str, Offer]) -> dict[str, torch.Tensor]:
        return {
            name: self._weights.dense(name, offer.choice)
            for name, offer in chosen.items()
            if offer.choice.bits or offer.choice.sparse
        }

    def _bits(self, size: int) -> float:
        return 8 * size / self._weights.parameters

    def _solved(self, budget: int, costs: Mapping[str, Sequence[float]] | None = None) -> dict[str, Offer]:
        names = list(self.offers)
        items = [
            [
                (offer.bytes, offer.cost if costs is None else costs[name][place])
                for place, offer in enumerate(self.offers[name])
            ]
            for name in names
        ]
        places = solve(items, budget - self._weights.other_bytes)
        assert places is not None  # budget is no less than self.smallest
        return {name: self.offers[name][place] for name, place in zip(names, places, strict=True)}

    def _refined(self, first: Allocated, budget: int, rounds: int) -> Allocated:
        met, best, damping = [first], first, _DAMPING
        slopes = self._slopes(best) if rounds else {}
        for number in range(rounds):
            self._work.progress(number, rounds, f"{best.bytes:,} bytes, KL {best.kl:.3g}")
            found = self.measured(self._solved(budget, self._costs(best, slopes, damping)))
            if found.chosen == best.chosen:
                damping /= 4
                continue
            assert found.searched and best.searched
            if found.searched.kl < best.searched.kl:
                best, damping = found, damping / 2
                met.append(found)
                slopes = self._slopes(best)
            else:
                damping *= 4
        return min(met, key=lambda each: each.judged.kl if each.judged else each.cost)

    def _shrunk(self, best: Allocated, kl: float) -> Allocated:
        """Refined, then smaller and refined again, while the divergence is kept."""
        for _ in range(_SHRINKS):
            budget = max(int(best.bytes * _SHRINK), self.smallest)
            found = self.within(budget, rounds=_ROUNDS // 2)
            if found.high > kl or found.bytes >= best.bytes:
                break
            best = found
        return best

    def _slopes(self, around: Allocated) -> dict[str, torch.Tensor]:
        assert self._judges
        dense = {name: self._weights.dense(name, offer.choice) for name, offer in around.chosen.items()}
        return self._judges[0].gradients(dense, list(dense))[1]

    def _costs(self, around: Allocated, slopes: Mapping[str, torch.Tensor], damping: float) -> dict[str, list[float]]:
        """What each offer would add to the divergence; what is far from the present choice, too much."""
        costs = {}
        for name, offers in self.offers.items():
            now = around.chosen[name]
            dense = self._weights.dense(name, now.choice)
            ratio = _ratio(offers)
            costs[name] = [
                self._added(name, offer, dense, slopes[name], ratio * damping)
                if now.bytes / _NEAR <= offer.bytes <= now.bytes * _NEAR
                else _FAR
                for offer in offers
            ]
        return costs

    def _added(self, name: str, offer: Offer, dense: torch.Tensor, slope: torch.Tensor, ratio: float) -> float:
        step = self._weights.dense(name, offer.choice) - dense
        return float((slope * step).sum()) + ratio * self._weights.scores.of(name, step)


def _ratio(offers: Sequence[Offer]) -> float:
    """What was measured over what was scored: the median of the offers that were."""
    found = sorted(offer.cost / offer.score for offer in offers if offer.score > 0)
    return found[len(found) // 2] if found else 1.0


def bytes_allowed(budget: Budget, parameters: int) -> int | None:
    """The bytes that its bits a parameter and its bytes leave; None where neither is bounded."""
    bounds = [] if budget.bytes is None else [budget.bytes]
    if budget.bits is not None:
        bounds.append(math.floor(budget.bits * parameters / 8 + 1e-9))
    return min(bounds) if bounds else None
