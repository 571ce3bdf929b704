"""Apple's chips, as far as something public is known of their Neural Engines. None: not known, which is no No."""

from dataclasses import dataclass


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
