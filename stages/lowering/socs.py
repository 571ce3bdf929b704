"""Snapdragon chips whose Hexagon computes in float16: what a context binary is compiled for.

QNN's numbers of chip and architecture as two projects print them, which had to agree: the devices of qai-hub-models
(htp_version, soc_model, fp16_npu) and executorch's QcomChipset. The plan asks this table too, so nothing heavy is
imported here.
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pipelines.errors import nearest
from stages.lowering.limits import Problem


@dataclass(frozen=True)
class Soc:
    """part: Qualcomm's number of it, title: its name. model: QNN's number. architecture: the Hexagon's version."""

    part: str
    title: str
    model: int
    architecture: int


SOCS = (
    Soc("SM8450", "Snapdragon 8 Gen 1", 36, 69),
    Soc("SM8550", "Snapdragon 8 Gen 2", 43, 73),
    Soc("SM8650", "Snapdragon 8 Gen 3", 57, 75),
    Soc("SM8750", "Snapdragon 8 Elite", 69, 79),
    Soc("SM8850", "Snapdragon 8 Elite Gen 5", 87, 81),
)
INTEGERS_ONLY = ("SM8350", "Snapdragon 888", "SM8250", "Snapdragon 865")  # Hexagon 68 and 66: no float16


def find_soc(chip: str) -> Soc | None:
    """The chip by its name or part number."""
    return next((soc for soc in SOCS if chip in (soc.part, soc.title)), None)


def hexagon_problem(chip: str) -> Problem | None:
    """Why no context binary can be made here for that chip; None if it can."""
    try:
        version("onnxruntime-qnn")
    except PackageNotFoundError:
        return (
            f"compile_for='{chip}' needs onnxruntime-qnn, which compiles for the Hexagon and is not installed",
            "Set compile_for=null: the phone compiles it at its first load; or pip install 'tapeout[qnn]', on Linux.",
        )
    return soc_problem(chip)


def soc_problem(chip: str) -> Problem | None:
    """Why nothing can be compiled for that chip; None if it can."""
    if find_soc(chip):
        return None
    known = f"Chips: {', '.join(f'{soc.title} ({soc.part})' for soc in SOCS)}."
    if chip in INTEGERS_ONLY:
        return (
            f"the Hexagon of '{chip}' computes in integers only; the encoder is float16",
            f"Take QNNExecutionProvider out of execution_providers: the encoder then runs on the CPU. {known}",
        )
    close = nearest(chip, [name for soc in SOCS for name in (soc.title, soc.part)])
    return f"there is no chip '{chip}' that Hexagon binaries can be compiled for", f"{close} {known}".strip()
