"""What a peer made of the weights: their values, and the arrays that its own file format holds for them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass
class Packed:
    """By weight name. dense: float32, in the weight's shape, what the peer's runtime would compute with. parts: the
    arrays of the peer's own format, packed as there. native: the weights that the peer covers by itself; others it was
    handed in a form that it takes. note: what is to be said of it; missing: why there is nothing."""

    dense: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    parts: dict[str, dict[str, Array]] = field(default_factory=dict)
    native: list[str] = field(default_factory=list)
    note: str = ""
    missing: str = ""

    def add(self, name: str, dense: NDArray[np.float32], **parts: Array) -> None:
        self.dense[name] = np.ascontiguousarray(dense, np.float32)
        self.parts[name] = {part: np.ascontiguousarray(array) for part, array in parts.items()}

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.dense, folder / "dense.safetensors")
        save_file(flat(self.parts, self.parts), folder / "packed.safetensors")
        about = {"native": sorted(self.native), "note": self.note, "missing": self.missing}
        (folder / "about.json").write_text(json.dumps(about, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Packed":
        from safetensors.numpy import load_file

        parts: dict[str, dict[str, Array]] = {}
        for key, array in load_file(folder / "packed.safetensors").items():
            name, part = key.split(":")
            parts.setdefault(name, {})[part] = array
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return cls(load_file(folder / "dense.safetensors"), parts, **about)


def flat(parts: dict[str, dict[str, Array]], names: Iterable[str]) -> dict[str, Array]:
    """{"name:part": array} of these weights."""
    return {f"{name}:{part}": array for name in names for part, array in parts[name].items()}


def bits_packed(codes: Array, bits: int) -> NDArray[np.uint8]:
    """Codes below 2^bits, `bits` bits each, without gaps: as Core ML's files hold them."""
    flat_codes = codes.astype(np.uint8).reshape(-1, 1)
    return np.packbits(np.unpackbits(flat_codes, axis=1, count=bits, bitorder="little"), bitorder="little")
