"""Apple's chips, as far as something public is known of their Neural Engines. None: not known, which is no No."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INT8_COMPUTE = "int8-compute"  # the rule of neural_engine_rules.py that depends on the chip


@dataclass(frozen=True)
class Chip:
    """int8_compute: products of int8 by int8 are faster than float16's (coremltools' guide names A17 Pro and M4)."""

    name: str
    int8_compute: bool | None


CHIPS = {
    chip.name: chip
    for chip in (
        *(Chip(name, False) for name in ("A14", "A15", "A16", "M1", "M2", "M3")),
        *(Chip(name, True) for name in ("A17 Pro", "M4")),
        *(Chip(name, None) for name in ("A18", "A18 Pro", "A19", "A19 Pro")),
    )
}


def chip_of(name: str) -> Chip:
    """The chip whose name `name` begins with ("M4 Max" is an M4); otherwise one of which nothing is known."""
    known = [chip for chip in CHIPS.values() if name == chip.name or name.startswith(chip.name + " ")]
    return max(known, key=lambda chip: len(chip.name)) if known else Chip(name, None)


def on_chip(findings: Sequence[Mapping[str, Any]], chip: str) -> list[dict[str, Any]]:
    """Findings (as dictionaries) of a program that was inspected for no chip in particular, as they are for `chip`."""
    known, found = chip_of(chip), list[dict[str, Any]]()
    for finding in findings:
        if finding["rule"] != INT8_COMPUTE:
            found.append(dict(finding))
        elif not known.int8_compute:
            found.append({**finding, "risk": int8_risk(known)})
    return found


def int8_risk(chip: Chip) -> str:
    """What is to be said of products of int8 by int8 on a chip that is not known to be good at them."""
    if chip.int8_compute is False:
        return f"int8 by int8 is not faster than float16 on {chip.name}."
    return f"int8 by int8 is faster than float16 on A17 Pro and M4; of {chip.name or 'this chip'}, that is not known."
