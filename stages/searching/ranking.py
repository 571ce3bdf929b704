"""Candidates ranked again, by what they answer after recovery."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stages.searching.hypervolume import kendall_tau
from stages.searching.trials import Score
from stages.searching.words import described


def ranked(candidates: Sequence[Mapping[str, Any]], scores: Sequence[Score]) -> dict[str, Any]:
    """chosen: the place of the most accurate (of equals the one with the least loss). tau: Kendall's, of the supernet's
    accuracy and the recovered; null for fewer than three candidates, or ties alone."""
    rows = [
        {**candidate, "place": place, "recovered": asdict(score)}
        for place, (candidate, score) in enumerate(zip(candidates, scores, strict=True))
    ]
    best = min(rows, key=lambda row: (-row["recovered"]["accuracy"], row["recovered"]["loss"], row["place"]))
    tau = None
    if len(rows) > 2:
        found = kendall_tau([row["score"]["accuracy"] for row in rows], [score.accuracy for score in scores])
        tau = found if found == found else None
    return {"candidates": rows, "chosen": best["place"], "tau": tau}


def summary(ranking: Mapping[str, Any]) -> list[str]:
    """Lines for the build's summary."""
    lines = []
    for row in ranking["candidates"]:
        chosen = "chosen" if row["place"] == ranking["chosen"] else "      "
        before, after = row["score"]["accuracy"], row["recovered"]["accuracy"]
        text = f"{chosen} {100 * after:5.1f} % right ({100 * before:.1f} % in the supernet)"
        lines.append(f"{text}, {row['parameters'] / 1e6:.2f} M parameters: {described(row['architecture'])}")
    if ranking["tau"] is not None:
        lines.append(f"Kendall's tau of supernet and recovered accuracy: {ranking['tau']:.2f}")
    return lines
