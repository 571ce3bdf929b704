"""A row of the table: one quantization of the reference model, with its size and what it does to the answers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from quantization.assembled import Basis


@dataclass(frozen=True)
class Entry:
    """bytes: of its files. matrix_bits: average bits of a weight of the matrices (subject.Kinds) alone, all else taken
    off. kl: nats an answer token, over `questions`. tasks: what metrics.compare gives by task, and the same `overall`;
    empty where no answers were generated. kind: of ours, "uniform", "auto", "floor" or "qat"; bound: what that was
    given, in bits or nats. counted: whether a file of the peer's can hold it. missing: why there are no figures."""

    who: str
    label: str
    basis: Basis
    kind: str = ""
    bound: float = 0.0
    bytes: int = 0
    weights: int = 0
    parameters: int = 1
    matrix_bits: float = 0.0
    kl: float = 0.0
    agreement: float = 0.0
    questions: int = 0
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    overall: dict[str, float] = field(default_factory=dict)
    counted: bool = True
    note: str = ""
    missing: str = ""

    @property
    def ours(self) -> bool:
        return self.who == "ours"

    @property
    def average_bits(self) -> float:
        """Of all parameters of the model, with all that its files hold."""
        return 8 * self.bytes / self.parameters

    @property
    def weight_bits(self) -> float:
        """Of all parameters of the model: its weights alone, without names and shapes."""
        return 8 * self.weights / self.parameters

    @property
    def lowest(self) -> float:
        """The least lower bound of retention over the tasks."""
        return min((task["retention_low"] for task in self.tasks.values()), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "basis": self.basis.value, "average_bits": self.average_bits}


HEADS = ("who", "what", "bytes", "bits", "matrices", "KL", "questions", "top-1", "retention", "flips", "")


def table(entries: Sequence[Entry]) -> str:
    """By size, the largest first, then what has no figures. bits: of all parameters; matrices: of the matrices' weights
    alone; retention: the lower bound of the worst task; flips: of all questions."""
    rows = [HEADS]
    for each in sorted((each for each in entries if not each.missing), key=lambda each: -each.bytes):
        rows.append(
            (
                each.who,
                each.label,
                f"{each.bytes:,}",
                f"{each.average_bits:.2f}",
                f"{each.matrix_bits:.2f}" if each.matrix_bits else "",
                f"{each.kl:.5f}",
                f"{each.questions:,}",
                f"{each.agreement:.2%}",
                f"{each.lowest:.1%}" if each.tasks else "",
                f"{each.overall['flips']:.2%}" if each.overall else "",
                each.note if each.counted else f"not counted: {each.note}",
            )
        )
    rows += [(each.who, each.label, *[""] * 8, each.missing) for each in entries if each.missing]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def frontier(entries: Sequence[Entry], slack: float = 1.0) -> list[Entry]:
    """Those whose KL is at most `slack` times the least among what has no more bytes, smallest first."""
    chosen, least = [], float("inf")
    for each in sorted((each for each in entries if not each.missing), key=lambda each: (each.bytes, each.kl)):
        least = min(least, each.kl)
        if each.kl <= slack * least:
            chosen.append(each)
    return chosen
