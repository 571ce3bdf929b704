"""Who takes part, and how each is measured: everybody on a few questions, what may matter on all of them."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from pipelines import typed
from quantization import ours as own
from quantization import peers
from quantization.assembled import Assembled, Basis, assembled
from quantization.entries import Entry, frontier
from quantization.judge import Judge
from quantization.packed import Packed
from quantization.subject import REPOSITORY, checkpoint, kinds
from quantization.targets import CLASSES, of_class
from stages.schema import ValidateConfig

NEAR = 1.5  # times the least KL at no more bytes: what is measured on all questions


class Contest:
    """cache: where weights and figures are kept. per_task, screen: questions of each task, all and a few."""

    def __init__(self, cache: Path, per_task: int, screen: int):
        self.cache = cache
        values = yaml.safe_load((REPOSITORY / "conf/validate/default.yaml").read_text(encoding="utf-8"))
        config = typed.build(typed.check("conf/validate", "validate", values, ValidateConfig), ValidateConfig)
        self.judge, self.screen = (Judge(count, cache / "judged", config) for count in (per_task, screen))
        model = checkpoint().model()
        matrices = kinds(model).matrices
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.of_matrices = sum(model.get_parameter(name).numel() for name in matrices)
        self.common = assembled(Packed(), Basis.same).bytes - 2 * self.of_matrices

    def entries(self, who: Sequence[str]) -> list[Entry]:
        torch.set_num_threads(1)
        found = self._peers([name for name in who if name in peers.PACKAGES])
        return found + (self._ours() if "ours" in who else [])

    def _ours(self) -> list[Entry]:
        places = own.run(own.OURS, self.cache)
        entries = []
        for each in own.OURS:
            entry = Entry("ours", each.label, Basis.same, each.kind, each.bound, parameters=self.parameters)
            made, missing = own.read(places[each.label])
            if made is None:
                entries.append(replace(entry, missing=missing))
                continue
            entry = replace(entry, weights=made.weights, **self._sizes(made.bytes, Basis.same))
            entry = self._measured(entry, made.state, self.judge)
            entries.append(entry if each.kind == "uniform" else self._answered(entry, made.state))
        return entries

    def _peers(self, names: Sequence[str]) -> list[Entry]:
        variants = peers.variants(names)
        places = peers.run(variants, self.cache)
        taking = [(each, basis) for each in variants for basis in Basis if getattr(each, basis.value)]
        screened: dict[tuple[str, str, Basis], Entry] = {}

        def made(variant: peers.Variant, basis: Basis) -> Assembled:
            return assembled(Packed.load(places[variant.key]), basis)

        for variant, basis in taking:
            packed = Packed.load(places[variant.key])
            entry = Entry(variant.peer, variant.label, basis, parameters=self.parameters, missing=packed.missing)
            entry = replace(entry, counted=not variant.unheld, note=variant.unheld or packed.note)
            if not packed.missing:
                model = assembled(packed, basis)
                entry = self._measured(replace(entry, **self._sizes(model.bytes, basis)), model.state, self.screen)
            screened[variant.key, variant.label, basis] = entry
        finals = self._finals(list(screened.values()))
        entries = []
        for variant, basis in taking:
            entry = screened[variant.key, variant.label, basis]
            if entry in finals:
                entry = self._measured(entry, made(variant, basis).state, self.judge)
            entries.append(entry)
        best = [min(few, key=lambda each: each.kl) for bits in CLASSES if (few := of_class(_counted(entries), bits))]
        for index, (variant, basis) in enumerate(taking):
            if entries[index] in best:
                entries[index] = self._answered(entries[index], made(variant, basis).state)
        return entries

    @staticmethod
    def _finals(screened: list[Entry]) -> list[Entry]:
        """On equal weights, what is near the peers' frontier in its class."""
        return [each for bits in CLASSES for each in frontier(of_class(_counted(screened), bits), NEAR)]

    def _sizes(self, size: int, basis: Basis) -> dict[str, float]:
        """On `whole`, what is beside the matrices differs: their bits are not to be told from the size."""
        bits = 8 * (size - self.common) / self.of_matrices if basis is Basis.same else 0.0
        return {"bytes": size, "matrix_bits": bits}

    @staticmethod
    def _measured(entry: Entry, state: dict[str, torch.Tensor], judge: Judge) -> Entry:
        figures = judge.divergence(state)
        _say(f"{entry.who}, {entry.label}, {entry.basis.value}: KL {figures['kl']:.5f} on {judge.count}")
        return replace(entry, kl=figures["kl"], agreement=figures["agreement"], questions=judge.count)

    def _answered(self, entry: Entry, state: dict[str, torch.Tensor]) -> Entry:
        _say(f"{entry.who}, {entry.label}: answers")
        return replace(entry, **self.judge.answers(state))


def _counted(entries: Sequence[Entry]) -> list[Entry]:
    return [each for each in entries if not each.missing and each.counted and each.basis is Basis.same]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
