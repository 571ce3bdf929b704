"""Emitters of the language model's own operators: rotary positions, attention over a cache in states."""

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var
from numpy.typing import NDArray
from torch.fx import Node

from stages.lowering.coreml.builder import MASKED, CacheLayer, FunctionBuilder
from stages.lowering.graph import register
from stages.lowering.rotary import rotary_tables


@register("coreml", "tapeout.rotary.default")
def rotary(context: FunctionBuilder, node: Node, x: Var, position: Var, theta: float) -> Var:
    """x * cos + swap_halves(x) * sin, the sines of the first half negated; the tables hold one half."""
    tokens, head_dim = int(x.shape[2]), int(x.shape[3])
    key = tokens, head_dim, theta, context.dtype
    cosines, sines = (_angles(context, part, position, *key[:3]) for part in ("cosines", "sines"))
    cosines = context.once(("cosines", key), lambda: mb.concat(values=[cosines, cosines], axis=-1))
    sines = context.once(
        ("sines", key), lambda: mb.concat(values=[mb.mul(x=sines, y=context.number(-1)), sines], axis=-1)
    )
    first, second = mb.split(x=x, num_splits=2, axis=-1)
    swapped = mb.concat(values=[second, first], axis=-1)
    return mb.add(x=mb.mul(x=x, y=cosines), y=mb.mul(x=swapped, y=sines))


def _angles(context: FunctionBuilder, part: str, position: Var, tokens: int, head_dim: int, theta: float) -> Var:
    """(tokens, head_dim / 2) from `position` on: rows of a table that the functions of a package share."""

    def table() -> NDArray[np.floating]:
        cosines, sines = rotary_tables(context.context, head_dim, theta)
        return (cosines if part == "cosines" else sines).astype(context.dtype)

    return context.once(
        ("angles", part, tokens, head_dim, theta, context.dtype),
        lambda: mb.gather(
            x=context.constant(f"rotary_{part}_{head_dim}_{theta:g}{context.suffix}", table),
            indices=_positions(context, position, np.arange(tokens)),
            axis=0,
            validate_indices=False,
        ),
    )


@register("coreml", "tapeout.cached_attention.default")
def cached_attention(
    context: FunctionBuilder,
    node: Node,
    query: Var,
    key: Var,
    value: Var,
    key_cache: CacheLayer,
    value_cache: CacheLayer,
    position: Var,
) -> tuple[Var, CacheLayer, CacheLayer]:
    """Grouped queries without copying the cache: the heads of a group are rows, one behind the other, of one head."""
    _, heads, tokens, head_dim = (int(size) for size in query.shape)
    kv_heads = int(key.shape[1])
    groups = heads // kv_heads
    keys = _store_rows(context, key_cache, key, position)
    values = _store_rows(context, value_cache, value, position)
    mask = context.once(("mask", tokens, groups), lambda: _mask(context, position, tokens, groups))
    grouped = mb.reshape(x=query, shape=[1, kv_heads, groups * tokens, head_dim])
    output = mb.scaled_dot_product_attention(query=grouped, key=keys, value=values, attn_mask=mask)
    return mb.reshape(x=output, shape=[1, heads, tokens, head_dim]), key_cache, value_cache


def _store_rows(context: FunctionBuilder, cache: CacheLayer, rows: Var, position: Var) -> Var:
    """Write rows (1, KV, N, head_dim) at `position` of a layer of a state; returns that layer (1, KV, C, head_dim)."""
    _, kv_heads, tokens, head_dim = (int(size) for size in rows.shape)
    layer = cache.layer
    stop = _positions(context, position, np.array([tokens]))
    begin = context.once(("begin", layer), lambda: _corner([layer, 0], position, [0]))
    end = context.once(("end", layer), lambda: _corner([layer + 1, kv_heads], stop, [head_dim]))
    updated = mb.slice_update(x=context.cache(cache.state), update=rows, begin=begin, end=end)
    contents = context.update_cache(cache.state, updated)
    return mb.slice_by_index(x=contents, begin=[layer, 0, 0, 0], end=[layer + 1, kv_heads, context.context, head_dim])


def _corner(before: list[int], row: Var, after: list[int]) -> Var:
    return mb.concat(values=[np.array(before, np.int32), row, np.array(after, np.int32)], axis=0)


def _positions(context: FunctionBuilder, position: Var, offsets: NDArray[np.int64]) -> Var:
    """position + offsets, int32."""
    key = ("positions", position.name, tuple(offsets.tolist()))
    return context.once(key, lambda: mb.add(x=position, y=offsets.astype(np.int32)))


def _mask(context: FunctionBuilder, position: Var, tokens: int, groups: int) -> Var:
    """(1, 1, groups * N, C) float16: 0 where the cache's row is not after the query's position, else MASKED."""
    rows = _positions(context, position, np.tile(np.arange(tokens), groups))
    columns = context.constant("cache_rows", lambda: np.arange(context.context, dtype=np.int32))
    later = mb.greater(x=columns, y=mb.expand_dims(x=rows, axes=[1]))
    return mb.expand_dims(x=mb.mul(x=mb.cast(x=later, dtype="fp16"), y=np.float16(MASKED)), axes=[0, 1])
