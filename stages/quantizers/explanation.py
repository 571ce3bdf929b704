"""An allocation in words: how large, how good, which weights got more than others, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stages.quantizers.allocation import Allocated, Offer
from stages.quantizers.candidates import label
from stages.schema import Budget, DeviceProfile

_NAMED = 8  # weights of which each list tells


def summary(point: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """The main lines: the allocation, and the best uniform choice of no more bytes."""
    lines = [f"{point['bytes']:,} bytes, {point['bits']:.3f} bits a parameter; {_quality(point)}"]
    beside = [each for each in others if each["bytes"] <= point["bytes"]]
    if beside and point["kl"] is not None:
        best = min(beside, key=lambda each: each["kl"])
        lines.append(
            f"the best uniform choice of no more bytes is {best['label']}: {best['bytes']:,} bytes, {_quality(best)}; "
            f"the allocation's KL is {_times(point['kl'], best['kl'])} of its"
        )
    elif point["kl"] is not None:
        lines.append("no uniform choice that the device takes is as small")
    return lines


def explained(
    table: Mapping[str, Any],
    chosen: Allocated,
    offers: Mapping[str, Sequence[Offer]],
    point: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]],
    budget: Budget,
    device: DeviceProfile,
) -> str:
    """allocation.md."""
    total = sum(offer.cost for offer in chosen.chosen.values()) or 1.0
    lines = [f"# What {device.title}'s weights become", "", f"Budget: {_asked(budget)}.", ""]
    lines += [line[0].upper() + line[1:] + "." for line in summary(point, others)]
    lines += ["", "## Kept, since they would cost most", ""]
    lines += _kept(chosen, offers, total) or ["No weight has more bits than others of its size."]
    lines += ["", "## What costs most now", ""]
    lines += _costly(chosen, total)
    lines += ["", "## By group of layers", "", "| group | weights | formats |", "|---|---|---|"]
    lines += _groups(table, chosen)
    lines += ["", "## Every weight", "", "| weight | choice | bytes | share of the cost |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {label(offer.choice)} | {offer.bytes:,} | {_percent(offer.cost / total)} |"
        for name, offer in chosen.chosen.items()
    ]
    return "\n".join(lines) + "\n"


def _kept(chosen: Allocated, offers: Mapping[str, Sequence[Offer]], total: float) -> list[str]:
    """What each weight would cost at the model's most frequent bits, where it has more."""
    usual = Counter(_bits(offer) for offer in chosen.chosen.values() if offer.choice.bits).most_common(1)
    if not usual:
        return []
    bits = usual[0][0]
    found = []
    for name, offer in chosen.chosen.items():
        lower = [each for each in offers[name] if each.choice.bits and _bits(each) <= bits]
        if _bits(offer) > bits and lower:
            other = min(lower, key=lambda each: each.cost)
            found.append((other.cost, name, offer, other))
    found.sort(key=lambda each: (-each[0], each[1]))
    return [
        f"- {name} is kept at {_width(offer)}: with {label(other.choice)} its KL alone would be {cost:.2g}, "
        f"{_percent(cost / total)} of the total of all weights now."
        for cost, name, offer, other in found[:_NAMED]
    ]


def _costly(chosen: Allocated, total: float) -> list[str]:
    ranked = sorted(chosen.chosen.items(), key=lambda item: (-item[1].cost, item[0]))
    return [
        f"- {name}, at {_width(offer)}: its KL alone is {offer.cost:.2g}, {_percent(offer.cost / total)} of the total."
        for name, offer in ranked[:_NAMED]
    ]


def _groups(table: Mapping[str, Any], chosen: Allocated) -> list[str]:
    members: dict[str, Counter[str]] = {}
    for name, offer in chosen.chosen.items():
        members.setdefault(table["weights"][name]["group"], Counter())[label(offer.choice)] += 1
    return [
        f"| {group} | {sum(kinds.values())} | {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())} |"
        for group, kinds in sorted(members.items())
    ]


def _asked(budget: Budget) -> str:
    words = [] if budget.bits is None else [f"{budget.bits:g} bits a parameter"]
    words += [] if budget.bytes is None else [f"{budget.bytes:,} bytes"]
    words += [] if budget.kl is None else [f"a KL of at most {budget.kl:g}, in as few bytes as possible"]
    return "; ".join(words)


def _quality(point: Mapping[str, Any]) -> str:
    if point["kl"] is None:
        return f"an estimated KL of {point['estimate']:.3g}"
    tokens, answers = _percent(point["agreement"]), _percent(point["accuracy"])
    return f"KL {point['kl']:.3g}, {tokens} of tokens as the float model's, {answers} of answers right"


def _bits(offer: Offer) -> float:
    """Of a weight; a code can stand for several."""
    return (offer.choice.bits or 16) / offer.choice.vector


def _width(offer: Offer) -> str:
    return f"{_bits(offer):g} bits" if offer.choice.bits else "float16"


def _times(value: float, other: float) -> str:
    return f"{value / other:.2f}" if other > 0 else "no share"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
