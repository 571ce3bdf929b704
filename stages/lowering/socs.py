"""Snapdragon chips whose Hexagon computes in float16, by Qualcomm's part number: what a context binary is compiled for.

Model numbers and architectures are those of QNN's QnnTypes.h as two projects print them, and both had to agree: the
devices of qai-hub-models (htp_version, soc_model, fp16_npu) and executorch's QcomChipset. The plan asks this table too,
so nothing heavy is imported here.
"""

from dataclasses import dataclass

from pipelines.errors import nearest
from stages.lowering.limits import Problem


@dataclass(frozen=True)
class Soc:
    """model: QNN's number of the chip. architecture: the Hexagon's version. title: the name it is sold under."""

    model: int
    architecture: int
    title: str


SOCS = {
    "SM8450": Soc(36, 69, "Snapdragon 8 Gen 1"),
    "SM8550": Soc(43, 73, "Snapdragon 8 Gen 2"),
    "SM8650": Soc(57, 75, "Snapdragon 8 Gen 3"),
    "SM8750": Soc(69, 79, "Snapdragon 8 Elite"),
    "SM8850": Soc(87, 81, "Snapdragon 8 Elite Gen 5"),
}
INTEGERS_ONLY = {"SM8350": "Snapdragon 888", "SM8250": "Snapdragon 865"}  # Hexagon 68 and 66: no float16


def soc_problem(soc: str) -> Problem | None:
    """Why nothing can be compiled for that chip; None if it can."""
    if soc in SOCS:
        return None
    known = ", ".join(f"{name} ({each.title})" for name, each in SOCS.items())
    if soc in INTEGERS_ONLY:
        return (
            f"soc is '{soc}' ({INTEGERS_ONLY[soc]}), whose Hexagon computes in integers only; the encoder is float16",
            f"Set soc to null: the encoder then runs on the CPU. Chips with float16: {known}.",
        )
    titles = {each.title: name for name, each in SOCS.items()}
    if soc in titles:
        return f"soc is '{soc}', which is a name; expected the part number", f"Set soc={titles[soc]}."
    return f"there is no chip '{soc}' in the table", " ".join(filter(None, [nearest(soc, SOCS), f"Chips: {known}."]))
