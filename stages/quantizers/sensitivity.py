"""What each candidate costs each weight, in nats an answer token: measured where that tells, estimated elsewhere.

    1. Every weight as every candidate: its bytes, exactly, and its Fisher score (scores.py).
    2. Each group of layers (attention, feed-forward, ...) as each candidate that is not dominated by far: the measured
       divergence over the sum of the scores is what that method and format are worth there.
    3. Each weight alone, as its middle candidate: the same ratio, of that weight within its group.
    4. The whole model as each candidate: the uniform choices, which an allocation is held against.

A weight's cost is its score times both ratios.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pipelines.workspace import Workspace
from stages.artifacts import Calibration, Checkpoint
from stages.quantizers.candidates import EIGHT_BITS, FLOAT, candidates, for_role, label, methods_of, quantize_settings
from stages.quantizers.choices import Choice, Role
from stages.quantizers.journal import Journal
from stages.quantizers.replaced import Measured, ReplacedModel, check_questions, search_questions
from stages.quantizers.weights import Weights
from stages.schema import Measure, SensitivityConfig

_ALONE = 0.1, 10.0  # what a weight's own ratio is held between: below a divergence of 1e-7, float32 tells little
_LEAST = 1e-12


def measure(
    checkpoint: Checkpoint, calibration: Calibration, config: SensitivityConfig, work: Workspace
) -> dict[str, Any]:
    """The table, as Sensitivity.table gives it, and in work.out, where measure is kl, a store of every candidate:

    measure, methods {how they ran}, questions {samples, seed, batch}; parameters; other_bytes: of what stays float;
    weights {name: {group, candidates [{choice, bytes, score, cost}]}}, by ascending bytes;
    groups {name: [{label, weights, bytes, score, kl}]} and uniform [{label, choices {name: choice}, bytes, kl,
    agreement, accuracy}], measured on the check questions, where measure is kl.
    """
    return _Measuring(checkpoint, calibration, config, work).table()


class _Measuring:
    """The four steps; what was finished is in the journal, and is not done again."""

    def __init__(self, checkpoint: Checkpoint, calibration: Calibration, config: SensitivityConfig, work: Workspace):
        self._checkpoint, self._config, self._work = checkpoint, config, work
        self._weights = Weights(checkpoint, calibration, quantize_settings(config), keep=config.measure is Measure.kl)
        self._every = candidates(config, self._weights.shapes())
        self._groups = self._weights.groups()
        self._group_of = {name: group for group, names in self._groups.items() for name in names}
        self._journal = Journal(work.scratch / "measured.jsonl")
        self._scores: dict[tuple[str, Choice], float] = {}
        self._worth: dict[tuple[str, Choice], float] = {}  # of a group, by (weight, choice)
        self._alone: dict[str, float] = {}
        self._steps = 0

    def table(self) -> dict[str, Any]:
        config, weights = self._config, self._weights
        table: dict[str, Any] = {
            "measure": config.measure.value,
            "questions": {"samples": config.samples, "seed": config.seed, "batch": config.batch},
            "parameters": weights.parameters,
            "other_bytes": weights.other_bytes,
            "methods": methods_of(config),
            "groups": {},
            "uniform": [],
        }
        self._score()
        if config.measure is Measure.kl:
            self._judge = ReplacedModel(self._checkpoint, search_questions(table), config.batch)
            table["groups"] = {group: self._measure_group(group) for group in self._groups}
            self._measure_alone()
            self._judge = ReplacedModel(self._checkpoint, check_questions(table), config.batch)
            table["uniform"] = self._measure_uniform()
        table["weights"] = {name: self._row(name) for name in weights.layers}
        if config.measure is Measure.kl:
            rows = [(name, row["choice"]) for name, each in table["weights"].items() for row in each["candidates"]]
            made = [(name, Choice.from_dict(choice)) for name, choice in rows]
            weights.write(self._work.out, [(name, choice) for name, choice in made if choice.bits])
        return table

    def _score(self) -> None:
        for index, chosen in enumerate(self._every):
            self._step(f"candidate {index + 1} of {len(self._every)}")
            for name, choice in chosen.items():
                if (name, choice) not in self._scores:
                    run = partial(self._scored, name, choice)
                    self._scores[name, choice] = self._journal.get(f"score {name} {choice}", run)[0]

    def _scored(self, name: str, choice: Choice) -> list[float]:
        return [self._weights.score(name, choice)]

    def _measure_group(self, group: str) -> list[dict[str, Any]]:
        rows = []
        for title, part in self._options(group):
            self._step(group)
            found = self._measured(f"{group}: {title}", part)
            score = sum(self._scores[item] for item in part.items())
            for item in part.items():
                self._worth[item] = max(found.kl, _LEAST) / max(score, _LEAST)
            size = sum(self._weights.bytes(*item) for item in part.items())
            rows.append({"label": title, "weights": len(part), "bytes": size, "score": score, "kl": found.kl})
        return rows

    def _options(self, group: str) -> list[tuple[str, dict[str, Choice]]]:
        """What a group can become, but for what takes no less than another and scores so much worse."""
        found: dict[tuple[tuple[str, Choice], ...], str] = {}
        for index, chosen in enumerate(self._every):
            part = {name: chosen[name] for name in self._groups[group] if name in chosen}
            if part:
                title = label(for_role(self._config.candidates[index], self._weights.layers[next(iter(part))].role))
                found.setdefault(tuple(part.items()), title)
        sized = [
            (
                len(part),
                sum(self._weights.bytes(*item) for item in part),
                sum(self._scores[item] for item in part),
                part,
            )
            for part in found
        ]
        return [
            (found[part], dict(part))
            for count, size, score, part in sized
            if not any(
                more >= count and less <= size and better * self._config.prune < score
                for more, less, better, _ in sized
            )
        ]

    def _measure_alone(self) -> None:
        for name, layer in self._weights.layers.items():
            self._step(name)
            options = sorted(
                (self._scores[item], index, item) for index, item in enumerate(self._worth) if item[0] == name
            )
            if not options or layer.role is Role.spatial or len(self._groups[self._group_of[name]]) == 1:
                continue
            score, _, item = options[len(options) // 2]
            found = self._measured(f"alone {name} {item[1]}", dict([item]))
            ratio = max(found.kl, _LEAST) / max(score * self._worth[item], _LEAST)
            self._alone[name] = min(max(ratio, _ALONE[0]), _ALONE[1])

    def _measure_uniform(self) -> list[dict[str, Any]]:
        """All matrices as one candidate; embeddings and head too, or of 8 bits. Convolutions that are no matrices, and
        what cannot follow, have 8 bits."""
        layers, rows, seen = self._weights.layers, [], []
        eight = {name: replace(EIGHT_BITS, group_size=layer.columns) for name, layer in layers.items()}
        for index, chosen in enumerate(self._every):
            for apart in ((), (Role.embeddings, Role.head)):
                picked = {
                    name: eight[name] if layer.role in apart else chosen.get(name, eight[name])
                    for name, layer in layers.items()
                }
                self._step("uniform choices")
                if picked in seen:
                    continue
                seen.append(picked)
                title = label(for_role(self._config.candidates[index], Role.language))
                title += ", embeddings and head 8 bits" if apart else ""
                found = self._measured(f"uniform {index} {len(apart)}", picked)
                size = self._weights.other_bytes + sum(self._weights.bytes(*item) for item in picked.items())
                choices = {name: choice.to_dict() for name, choice in picked.items()}
                measured = {
                    "kl": found.kl,
                    "high": found.high,
                    "agreement": found.agreement,
                    "accuracy": found.accuracy,
                }
                rows.append({"label": title, "bytes": size, "choices": choices, **measured})
        return sorted(rows, key=lambda row: (row["bytes"], row["kl"]))

    def _row(self, name: str) -> dict[str, Any]:
        measured, found = self._config.measure is Measure.kl, []
        for choice in dict.fromkeys(chosen[name] for chosen in self._every if name in chosen):
            score = self._scores[name, choice]
            if measured and (name, choice) not in self._worth:
                continue
            cost = score * self._worth.get((name, choice), 1.0) * self._alone.get(name, 1.0)
            found.append(
                {"choice": choice.to_dict(), "bytes": self._weights.bytes(name, choice), "score": score, "cost": cost}
            )
        found.append({"choice": FLOAT.to_dict(), "bytes": self._weights.bytes(name, FLOAT), "score": 0.0, "cost": 0.0})
        return {"group": self._group_of[name], "candidates": sorted(found, key=lambda row: (row["bytes"], row["cost"]))}

    def _measured(self, key: str, part: Mapping[str, Choice]) -> Measured:
        def run() -> list[float]:
            found = self._judge.measured({name: self._weights.dense(name, choice) for name, choice in part.items()})
            return [found.kl, found.high, found.agreement, found.accuracy]

        return Measured(*self._journal.get(key, run))

    def _step(self, text: str) -> None:
        every, groups = len(self._every), len(self._groups)
        total = every * (1 + groups + 2) + len(self._weights.layers)
        self._work.progress(min(self._steps, total), total if self._config.measure is Measure.kl else every, text)
        self._steps += 1
