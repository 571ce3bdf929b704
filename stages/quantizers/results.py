"""What a method makes of one weight: codes, and what they mean."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Float:
    """A weight that stays float16 where mask, bool (out, in), is not False; float32 (out, in) here."""

    weight: torch.Tensor
    mask: torch.Tensor | None = None

    def dense(self) -> torch.Tensor:
        """float32 (out, in), exactly what the store gives."""
        return _masked(self.weight.half().float(), self.mask)


@dataclass(frozen=True)
class Affine:
    """A weight as codes uint8 (out, in), scales float16 (out, groups), zero_points uint8 (out, groups): its value is
    scale * (code - zero point). mask: bool (out, in), False where the weight is zero whatever its code; None: nowhere.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    mask: torch.Tensor | None = None

    def dense(self) -> torch.Tensor:
        """float32 (out, in), exactly what the store gives."""
        rows, columns = self.codes.shape
        grouped = self.codes.reshape(rows, self.scales.shape[1], -1).float() - self.zero_points.unsqueeze(-1).float()
        return _masked((grouped * self.scales.unsqueeze(-1).float()).reshape(rows, columns), self.mask)

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
        return self.codes.numpy(), self.scales.numpy(), self.zero_points.numpy()


@dataclass(frozen=True)
class Palette:
    """A weight as codes uint8 (out, in) into palette float16 (groups, 2^bits), ascending; group_size rows share one.

    Of vectors: codes (out / vector, in), palette (groups, 2^bits, vector), whose entries stand for as many consecutive
    rows of a column. channel_scales: float16 (out,), by which each row is multiplied; mask: as of Affine.
    """

    codes: torch.Tensor
    palette: torch.Tensor
    group_size: int
    channel_scales: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    @property
    def vector(self) -> int:
        return self.palette.shape[2] if self.palette.ndim == 3 else 1

    def dense(self) -> torch.Tensor:
        """float32 (out, in), exactly what the store gives."""
        rows = torch.arange(len(self.codes)) * self.vector // self.group_size
        values = self.palette.float()[rows.unsqueeze(1), self.codes.long()]
        if self.vector > 1:
            values = values.transpose(1, 2).flatten(0, 1)
        if self.channel_scales is not None:
            values = values * self.channel_scales.float().unsqueeze(1)
        return _masked(values, self.mask)

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        return self.codes.numpy(), self.palette.numpy()


def _masked(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return values if mask is None else torch.where(mask, values, 0.0)
