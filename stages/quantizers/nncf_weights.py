"""NNCF's weights: what nncf.compress_weights makes of a linear layer, without data, code for code.

NNCF multiplies codes and scales in float16; the store's value is their float32 product, so that NNCF's own is the
store's rounded to float16. Symmetric scales may be negative: the largest weight of a group gets the code -2^(b-1).
"""

import torch
from torch import nn

from stages.quantizers.nncf_session import quiet_nncf
from stages.quantizers.results import Affine


def nncf_weights(weight: torch.Tensor, bits: int, group_size: int, symmetric: bool) -> Affine:
    """weight: float32 (out, in). bits: 4, or 8 with one scale a row; group_size divides in."""
    rows, columns = weight.shape
    even = rows + rows % 2  # NNCF packs codes in pairs, and fails where one is left over
    with quiet_nncf() as nncf:
        mode = nncf.CompressWeightsMode[f"INT{bits}_{'SYM' if symmetric else 'ASYM'}"]
        options = {"ratio": 1.0, "all_layers": True, "group_size": group_size} if bits == 4 else {}
        layer = _Layer(nn.functional.pad(weight, (0, 0, 0, even - rows)))
        example = nncf.Dataset([torch.zeros(1, columns)])
        compressed = nncf.compress_weights(layer, mode=mode, dataset=example, **options)
    (decompressor,) = (module for module in compressed.modules() if hasattr(module, "_scale"))
    codes = _unpacked(compressed.linear.weight, bits, symmetric).reshape(even, columns)
    scales = decompressor._scale.reshape(even, columns // group_size)
    zero_points = torch.full(scales.shape, 1 << (bits - 1), dtype=torch.uint8)
    if not symmetric:
        zero_points = _unpacked(decompressor._zero_point, bits, symmetric).reshape(scales.shape)
    return Affine(codes[:rows], scales[:rows], zero_points[:rows])


class _Layer(nn.Module):
    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.linear.weight = nn.Parameter(weight.clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x)
        return result


def _unpacked(codes: torch.Tensor, bits: int, symmetric: bool) -> torch.Tensor:
    """NNCF's codes as uint8 (n,) from 0: of 4 bits two are in a byte, the low ones first."""
    flat = codes.flatten()
    if bits == 8:
        return (flat.to(torch.int16) + 128).to(torch.uint8) if symmetric else flat.to(torch.uint8)
    return torch.stack([flat & 15, flat >> 4], 1).flatten()
