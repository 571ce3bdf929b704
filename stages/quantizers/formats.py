"""How a weight can be stored: its kind, its bits, what parts it has, and what a runtime needs to hold it.

| kind    | parts of tensor NAME                                                  | value of a weight             |
|---------|-----------------------------------------------------------------------|-------------------------------|
| float   | NAME; where it is sparse .values (kept,)                              | as it is                      |
| affine  | .codes (out, in), .scales and .zero_points (out, in / group_size)     | scale * (code - zero point)   |
| palette | .codes (out / vector, in), .palette (groups of rows, 2^bits[, vector]) | palette[code]                 |
|         | the same and .channel_scales (out,)                                   | palette[code] * channel scale |

Codes, zero points and masks are packed (packing.py); the other numbers are float16, or float32 where a float tensor is.
NAME.mask, where a tensor is sparse, has one bit a code: then codes (or values) are those of the kept weights alone, row
by row, and what is not kept is 0. Unstructured and n:m sparsity are stored alike.

Values are exact in float32. A runtime that computes in float16 gives them rounded once: it multiplies two numbers.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from stages.quantizers.packing import BIT_WIDTHS, packed_size

FLOATS = {"float16": "F16", "float32": "F32"}
Part = tuple[str, tuple[int, ...]]  # dtype as safetensors names it, shape


@dataclass(frozen=True)
class TensorFormat:
    """How one tensor is stored. `bytes`: packed size of all its parts. `reason`: why it is not in the format asked for.

    float: dtype. affine: bits, group_size (columns), symmetric. palette: bits, group_size (rows; 0 = whole tensor),
    vector (the consecutive rows of a column that one code stands for), channel_scale. sparse: kept, the weights that
    are stored; the others are 0.
    """

    format: str
    shape: tuple[int, ...]
    bytes: int
    dtype: str = "float16"
    bits: int = 0
    group_size: int = 0
    symmetric: bool = False
    reason: str = ""
    vector: int = 1
    channel_scale: bool = False
    sparse: bool = False
    kept: int = 0

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def groups(self) -> int:
        """Scales a row (affine), or palettes a tensor (palette)."""
        if self.format == "affine":
            return self.columns // self.group_size
        return -(-self.rows // self.group_size) if self.group_size else 1

    @property
    def sparsity(self) -> float:
        """The share of the weights that the mask leaves out; 0 where there is none."""
        return 1 - self.kept / max(self.size, 1) if self.sparse else 0.0

    @property
    def codes(self) -> int:
        """How many codes are stored; of a sparse float tensor, values."""
        return (self.kept if self.sparse else self.size) // self.vector

    def needs(self) -> tuple[str, ...]:
        """What a runtime must be able to hold, in the words of a device profile's weight_formats."""
        kind = {"float": self.dtype, "affine": f"affine-int{self.bits}", "palette": f"palette-{self.bits}"}[self.format]
        properties = {
            "palette-vectors": self.vector > 1,
            "palette-channel-scales": self.channel_scale,
            "sparse": self.sparse,
        }
        return (kind, *(name for name, has in properties.items() if has))

    def parts(self) -> dict[str, Part]:
        """What is stored, by its ending ("" for a dense float tensor itself)."""
        found: dict[str, Part] = {}
        if self.sparse:
            found[".mask"] = "U8", (packed_size(self.size // self.vector, 1),)
        if self.format == "float":
            dtype = FLOATS.get(self.dtype, self.dtype)
            return found | ({".values": (dtype, (self.kept,))} if self.sparse else {"": (dtype, self.shape)})
        found[".codes"] = "U8", (packed_size(self.codes, self.bits),)
        if self.format == "palette":
            vector = (self.vector,) if self.vector > 1 else ()
            found[".palette"] = "F16", (self.groups, 1 << self.bits, *vector)
            return found | ({".channel_scales": ("F16", (self.rows,))} if self.channel_scale else {})
        found[".scales"] = "F16", (self.rows, self.groups)
        if not self.symmetric:
            found[".zero_points"] = "U8", (packed_size(self.rows * self.groups, self.bits),)
        return found

    def packed_bytes(self) -> int:
        """What all the parts take."""
        sizes = {"U8": 1, "F16": 2, "F32": 4}
        return sum(sizes[dtype] * math.prod(shape) for dtype, shape in self.parts().values())

    def to_dict(self) -> dict[str, Any]:
        """For formats.json: what says something of this kind."""
        fields = {
            "float": ["dtype"],
            "affine": ["bits", "group_size", "symmetric"],
            "palette": ["bits", "group_size"],
        }[self.format]
        values = asdict(self)
        fields += ["vector"] * (self.vector > 1) + ["channel_scale"] * self.channel_scale
        fields += ["sparse", "kept"] * self.sparse + ["reason"] * bool(self.reason)
        kept = {key: values[key] for key in ("format", "bytes", *fields)} | {"shape": list(self.shape)}
        return kept | ({"sparsity": round(self.sparsity, 6)} if self.sparse else {})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TensorFormat":
        """The inverse; Python's own errors for what has other fields. `problem` says more."""
        return cls(
            **{key: value for key, value in values.items() if key not in ("shape", "sparsity")},
            shape=tuple(values["shape"]),
        )

    def problem(self) -> str:
        """Why there can be no such tensor; "" where there can."""
        if self.format not in ("float", "affine", "palette"):
            return f"has an impossible format, '{self.format}'"
        if self.format != "float" and self.bits not in BIT_WIDTHS:
            return f"has {self.bits} bits; expected one of {BIT_WIDTHS}"
        if self.format == "affine" and (self.group_size < 1 or self.columns % self.group_size):
            return f"has groups of {self.group_size} in {self.columns} columns"
        if self.vector < 1 or (self.rows if self.format != "float" else 0) % self.vector:
            return f"has vectors of {self.vector} in {self.rows} rows"
        if self.vector > 1 and (self.format != "palette" or self.group_size % self.vector):
            return f"has vectors of {self.vector} in groups of {self.group_size} rows"
        if self.channel_scale and self.format != "palette":
            return "has channel scales and is no palette"
        if self.sparse and not (0 < self.kept <= self.size and self.kept % self.vector == 0):
            return f"keeps {self.kept} of {self.size} weights"
        return ""
