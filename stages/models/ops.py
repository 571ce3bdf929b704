"""Operators that capture keeps whole, so that every target lowers them with one table entry.

Eager implementations are the reference semantics; fake ones give shapes under FakeTensorMode.
"""

import torch


def rotary_angles(positions: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary embedding (RoFormer, arXiv:2104.09864, in Qwen2's half-split form).

    positions: (N,) any integer dtype. Returns two float32 tensors (N, head_dim).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.to(torch.float32)[:, None] * (1.0 / theta**exponents)[None, :]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate x (..., N, head_dim) by angles (N, head_dim); the halves of a head are the pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines


@torch.library.custom_op("tapeout::rotary", mutates_args=())
def rotary(x: torch.Tensor, position: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of x (B, H, N, head_dim); row i stands at position[0] + i. position: (1,) integer."""
    positions = position[0] + torch.arange(x.shape[2], device=x.device)
    cosines, sines = rotary_angles(positions, x.shape[3], theta)
    return rotate(x.float(), cosines, sines).to(x.dtype)


@rotary.register_fake
def _(x: torch.Tensor, position: torch.Tensor, theta: float) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("tapeout::cached_attention", mutates_args=())
def cached_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Grouped-query attention over a static cache, causal by position, scaled by 1/sqrt(head_dim).

    query: (B, H, N, head_dim); key, value: (B, KV, N, head_dim) written at position[0]..position[0]+N-1 of the caches
    (B, KV, C, head_dim). Query i sees cache rows 0..position[0]+i. Returns (output (B, H, N, head_dim), new caches).
    """
    start, count = int(position[0]), query.shape[2]
    key_cache, value_cache = key_cache.clone(), value_cache.clone()
    key_cache[:, :, start : start + count] = key
    value_cache[:, :, start : start + count] = value
    rows = torch.arange(start, start + count, device=query.device)[:, None]
    visible = torch.arange(key_cache.shape[2], device=query.device)[None, :] <= rows
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key_cache, value_cache, attn_mask=visible, enable_gqa=True
    )
    return output, key_cache, value_cache


@cached_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), torch.empty_like(key_cache), torch.empty_like(value_cache)
