"""A block of a tensor as its difference from the older block, in the few bytes that a change of weights needs.

Trained a little further and quantized again, most codes stay, and nearly all others move by one. What costs least is
chosen for each block:

    sparse   how far it is from one change to the next (a byte; 255: so many unchanged, and no change yet), the sign of
             each, and, in the same way, those changes that are not by one. Gaps of a constant rate are geometric, for
             which zstd's Huffman codes come within 3 % of the entropy; of the plain differences it makes 4 to 45 %
             more, since none of its codes has less than a bit a byte
    dense    each element's difference modulo 2^bits: 4 bits packed as they were, 8 bits, or 16 and 32 bits with the
             sign in the lowest bit, split into planes of their bytes
    literal  the new bytes

Differences are of the bits as an integer, of a float's too: near values are near integers.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from stages.release.deltas.tensor_layout import Element

BLOCK = 1 << 18  # bytes of a block, a multiple of all elements; its arrays stay in the processor's cache
SKIP = 255  # a gap's byte that says: so many elements unchanged, and no change yet
Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


class Stream(IntEnum):
    """Where a block's bytes go: alike with alike, each compressed as a whole."""

    GAPS_4 = 1
    GAPS_8 = 2
    SIGNS = 3  # a bit a change, 1 for less
    RARE_GAPS = 4  # between changes that are not by one, counted in changes
    RARE_VALUES = 5
    DENSE_4 = 6
    DENSE_8 = 7
    LITERAL = 8
    PATCHES = 9  # frames of their own (delta_apply.py); not compressed as a whole
    PLANE_0 = 16  # the lowest bytes
    PLANE_1 = 17
    PLANE_2 = 18
    PLANE_3 = 19


class Kind(IntEnum):
    """How a block is made from the older one."""

    COPY = 0
    SPARSE_4 = 1
    SPARSE_8 = 2
    DENSE_4 = 3
    DENSE_8 = 4
    DENSE_16 = 5
    DENSE_32 = 6
    LITERAL = 7
    PATCH = 8


class Unfit(Exception):
    """The bytes of a block's streams lead out of the block."""


@dataclass(frozen=True)
class Coded:
    """A block's coding. gaps, rare: bytes that it takes from the streams of gaps (sparse ones only)."""

    kind: Kind
    parts: dict[Stream, bytes]
    gaps: int = 0
    rare: int = 0

    @property
    def size(self) -> int:
        """Bytes that it will take, nearly."""
        return -(-sum(map(cost, self.parts.values())) // 8)


Take = Callable[[Stream, int], Bytes]


def encode(old: Bytes | None, new: Bytes, element: Element) -> Coded:
    """Return the coding that costs least in a Huffman code. old: of equal length; None where there is none."""
    if old is None:
        return Coded(Kind.LITERAL, {Stream.LITERAL: new.tobytes()})
    if np.array_equal(old, new):
        return Coded(Kind.COPY, {})
    width = {Element.BITS_16: 2, Element.BITS_32: 4}.get(element, 1)
    if len(new) % width == 0 and width > 1:
        choices = [planes(old, new, width)]
    elif element is Element.BITS_4:
        choices = [sparse(old, new, Kind.SPARSE_4), dense_4(old, new)]
    else:
        choices = [sparse(old, new, Kind.SPARSE_8), Coded(Kind.DENSE_8, {Stream.DENSE_8: (new - old).tobytes()})]
    choices.append(Coded(Kind.LITERAL, {Stream.LITERAL: new.tobytes()}))
    return min(choices, key=lambda coded: coded.size)


def decode(kind: Kind, old: Bytes, gaps: int, rare: int, take: Take) -> Bytes:
    """Return the new block. take: the next bytes of a stream. Raises Unfit."""
    if kind is Kind.COPY:
        return old
    if kind is Kind.DENSE_8:
        return old + take(Stream.DENSE_8, len(old))
    if kind is Kind.DENSE_4:
        return add_nibbles(old, take(Stream.DENSE_4, len(old)))
    if kind is Kind.SPARSE_8:
        places = places_of(take(Stream.GAPS_8, gaps), len(old))
        new = old.copy()
        new[places] += changes(len(places), rare, take)
        return new
    if kind is Kind.SPARSE_4:
        places = places_of(take(Stream.GAPS_4, gaps), 2 * len(old))
        difference = np.zeros(2 * len(old), np.uint8)
        difference[places] = changes(len(places), rare, take) & 15
        return add_nibbles(old, packed(difference))
    width = 2 if kind is Kind.DENSE_16 else 4
    if len(old) % width:
        raise Unfit(f"{len(old)} bytes are no elements of {width}")
    return from_planes(old, width, take)


def cost(data: bytes) -> int:
    """Return the bits of data under a Huffman code for its bytes; no more than data itself has.

    The entropy would flatter the dense codings: a code has at least one bit, however frequent its byte.
    """
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    heap = counts[counts > 0].tolist()
    heapq.heapify(heap)
    bits = len(data) if len(heap) == 1 else 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heap[0]
        bits += joined
        heapq.heapreplace(heap, joined)
    return min(bits, 8 * len(data))


def sparse(old: Bytes, new: Bytes, kind: Kind) -> Coded:
    if kind is Kind.SPARSE_4:
        difference = unpacked(new) - unpacked(old) & 15
        where, signed = np.flatnonzero(difference), (difference ^ 8).astype(np.int8) - 8
    else:
        difference = new - old
        where, signed = np.flatnonzero(difference), difference.view(np.int8)
    moved = signed[where]
    wide = np.flatnonzero(np.abs(moved.astype(np.int16)) != 1)
    gaps, rare = gaps_of(where), gaps_of(wide)
    parts = {
        Stream.GAPS_4 if kind is Kind.SPARSE_4 else Stream.GAPS_8: gaps.tobytes(),
        Stream.SIGNS: np.packbits(moved < 0).tobytes(),
        Stream.RARE_GAPS: rare.tobytes(),
        Stream.RARE_VALUES: moved[wide].tobytes(),
    }
    return Coded(kind, parts, len(gaps), len(rare))


def changes(count: int, rare: int, take: Take) -> Bytes:
    """Return each change, modulo 256. rare: bytes of the gaps between those that are not by one."""
    signs = np.unpackbits(take(Stream.SIGNS, -(-count // 8)), count=count)
    found = 1 - 2 * signs  # 1, or 255 for -1
    if rare:
        places = places_of(take(Stream.RARE_GAPS, rare), count)
        found[places] = take(Stream.RARE_VALUES, len(places))
    return found


def gaps_of(places: Places) -> Bytes:
    """Return the gaps before each of the places (rising, from 0), as bytes."""
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(gaps // SKIP + 1)
    found = np.full(int(ends[-1]) if len(ends) else 0, SKIP, np.uint8)
    found[ends - 1] = gaps % SKIP
    return found


def places_of(gaps: Bytes, count: int) -> Places:
    """Return the places that gaps lead to. Raises Unfit where one is not below count."""
    ends = gaps < SKIP
    steps = np.cumsum(gaps + ends.view(np.uint8), dtype=np.int64)  # 255 stays 255: it is no end
    places = steps[ends] - 1
    if len(places) and places[-1] >= count:
        raise Unfit(f"element {places[-1]} of {count} changes")
    return places


def dense_4(old: Bytes, new: Bytes) -> Coded:
    return Coded(Kind.DENSE_4, {Stream.DENSE_4: packed(unpacked(new) - unpacked(old) & 15).tobytes()})


def unpacked(data: Bytes) -> Bytes:
    """Return the two codes of each byte, the low half first."""
    return np.stack([data & 15, data >> 4], axis=1).reshape(-1)


def packed(codes: Bytes) -> Bytes:
    """Return codes below 16, two a byte."""
    pairs = codes.view("<u2")
    both = pairs >> 4
    both |= pairs
    return both.astype(np.uint8)


def add_nibbles(left: Bytes, right: Bytes) -> Bytes:
    """Return the sums of both halves of each byte, each modulo 16."""
    return ((left & 0x77) + (right & 0x77)) ^ ((left ^ right) & 0x88)


def planes(old: Bytes, new: Bytes, width: int) -> Coded:
    unsigned, bits = np.dtype(f"<u{width}"), 8 * width
    difference = new.view(unsigned) - old.view(unsigned)
    folded = (difference << 1) ^ (0 - (difference >> bits - 1))  # the sign in the lowest bit
    split = folded.view(np.uint8).reshape(-1, width)
    kind = Kind.DENSE_16 if width == 2 else Kind.DENSE_32
    return Coded(kind, {Stream(Stream.PLANE_0 + place): split[:, place].tobytes() for place in range(width)})


def from_planes(old: Bytes, width: int, take: Take) -> Bytes:
    unsigned = np.dtype(f"<u{width}")
    split = np.empty((len(old) // width, width), np.uint8)
    for place in range(width):
        split[:, place] = take(Stream(Stream.PLANE_0 + place), len(split))
    folded = split.reshape(-1).view(unsigned)
    difference = (folded >> 1) ^ (0 - (folded & 1))
    return (old.view(unsigned) + difference).view(np.uint8)
