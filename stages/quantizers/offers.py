"""What an allocation may choose from on a device: the table's candidates that it takes, after the overrides."""

from collections.abc import Mapping
from typing import Any

from stages.quantizers.allocation import Offer
from stages.quantizers.candidates import takes
from stages.quantizers.choices import Choice, choices
from stages.quantizers.weights import Weights
from stages.schema import DeviceProfile, QuantizeConfig

_DOMINATED = 2.0  # costs are estimates: what takes no fewer bytes is left out where it costs that many times more


def offers(
    table: Mapping[str, Any], weights: Weights, config: QuantizeConfig, device: DeviceProfile
) -> dict[str, list[Offer]]:
    """Of each weight, by ascending bytes. Raises StageError for an override that fits no weight."""
    rows = {name: row["candidates"] for name, row in table["weights"].items()}
    known = {name: {Choice.from_dict(row["choice"]): row for row in each} for name, each in rows.items()}
    found: dict[str, dict[Choice, Offer]] = {name: {} for name in rows}
    for place in range(max(map(len, rows.values()), default=0)):
        # a weight with fewer candidates repeats its last
        asked = {name: Choice.from_dict(each[min(place, len(each) - 1)]["choice"]) for name, each in rows.items()}
        for name, choice in choices(config, weights.shapes(), asked).items():
            if choice not in found[name]:
                found[name][choice] = _offer(name, choice, known[name], weights)
    return {name: _taken(name, list(each.values()), weights, device) for name, each in found.items()}


def _offer(name: str, choice: Choice, known: Mapping[Choice, Mapping[str, Any]], weights: Weights) -> Offer:
    """From the table; what an override made is scored here, at the ratio of the others."""
    if choice in known:
        row = known[choice]
        return Offer(choice, row["bytes"], row["score"], row["cost"])
    ratios = sorted(row["cost"] / row["score"] for row in known.values() if row["score"] > 0)
    score = weights.score(name, choice)
    return Offer(choice, weights.bytes(name, choice), score, score * (ratios[len(ratios) // 2] if ratios else 1.0))


def _taken(name: str, every: list[Offer], weights: Weights, device: DeviceProfile) -> list[Offer]:
    """What an override leaves alone is taken whatever the device: the plan has checked it."""
    shape = weights.layers[name].shape
    held = [offer for offer in every if len(every) == 1 or takes(device, offer.choice, shape)]
    held = [offer for offer in held if not any(_dominates(other, offer) for other in held)]
    return sorted(held, key=lambda offer: (offer.bytes, offer.cost))


def _dominates(other: Offer, offer: Offer) -> bool:
    return other.bytes <= offer.bytes and other.cost * _DOMINATED < offer.cost
