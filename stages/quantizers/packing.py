"""Codes of few bits, packed into bytes little end first: code i is bits [i * bits, (i + 1) * bits) of the stream."""

import numpy as np
from numpy.typing import NDArray

BIT_WIDTHS = (1, 2, 3, 4, 6, 8)
_CHUNK = 1 << 20  # codes packed at a time, a multiple of 8: bounds the memory of the 64-bit words


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack codes (any shape, read row by row) of 0..2^bits-1 into uint8 (packed_size(codes.size, bits),).

    The last byte is filled with zero bits. Raises ValueError for a code that does not fit or another bit width.
    """
    _check(bits)
    flat = np.ascontiguousarray(codes, np.uint8).reshape(-1)
    if flat.size and int(flat.max()) >> bits:
        raise ValueError(f"code {int(flat.max())} does not fit in {bits} bits")
    if bits == 8:
        return flat.copy()
    packed = np.empty(packed_size(flat.size, bits), np.uint8)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        begin = start * bits // 8
        packed[begin : begin + packed_size(chunk.size, bits)] = _pack_chunk(chunk, bits)
    return packed


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of pack_bits: the first `count` codes, uint8 (count,). Raises ValueError for too few bytes."""
    _check(bits)
    flat = np.ascontiguousarray(packed, np.uint8).reshape(-1)
    if flat.size != packed_size(count, bits):
        raise ValueError(f"{flat.size} bytes for {count} codes of {bits} bits, expected {packed_size(count, bits)}")
    if bits == 8:
        return flat.copy()
    codes = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        length = min(_CHUNK, count - start)
        begin = start * bits // 8
        codes[start : start + length] = _unpack_chunk(flat[begin : begin + packed_size(length, bits)], bits, length)
    return codes


def unpack_some(packed: NDArray[np.uint8], bits: int, first: int, count: int) -> NDArray[np.uint8]:
    """Codes first .. first + count - 1 of a packed stream, uint8 (count,), reading no more of it than they take.

    Raises ValueError for too few bytes.
    """
    start = first - first % 8  # which begins a byte, whatever the width
    begin = start * bits // 8
    wanted = first - start + count
    return unpack_bits(packed[begin : begin + packed_size(wanted, bits)], bits, wanted)[first - start :]


def count_ones(packed: NDArray[np.uint8], count: int | None = None) -> int:
    """How many of the first `count` bits (None: of all) are set: what a packed mask keeps."""
    whole = packed.size if count is None else count // 8
    ones = int(np.bitwise_count(packed[:whole]).sum())
    if count is None or count % 8 == 0:
        return ones
    return ones + (int(packed[whole]) & ((1 << count % 8) - 1)).bit_count()


def _check(bits: int) -> None:
    if bits not in BIT_WIDTHS:
        raise ValueError(f"{bits} bits; expected one of {', '.join(map(str, BIT_WIDTHS))}")


def _pack_chunk(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Eight codes make `bits` whole bytes, whatever the width: gather them in a 64-bit word, keep its low bytes."""
    if bits == 1:
        return np.packbits(codes, bitorder="little")
    padded = np.zeros(-(-codes.size // 8) * 8, np.uint8)
    padded[: codes.size] = codes
    octets = padded.reshape(-1, 8)
    if bits == 4:
        pairs: NDArray[np.uint8] = octets[:, 0::2] | (octets[:, 1::2] << np.uint8(4))
        return pairs.reshape(-1)[: packed_size(codes.size, bits)]
    words = np.zeros(len(octets), np.dtype("<u8"))
    for index in range(8):
        words |= octets[:, index].astype(np.uint64) << np.uint64(bits * index)
    return words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)[: packed_size(codes.size, bits)]


def _unpack_chunk(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    if bits == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    padded = np.zeros(-(-count // 8) * bits, np.uint8)
    padded[: packed.size] = packed
    codes = np.empty((-(-count // 8), 8), np.uint8)
    if bits == 4:
        codes[:, 0::2], codes[:, 1::2] = padded.reshape(-1, 4) & 15, padded.reshape(-1, 4) >> 4
        return codes.reshape(-1)[:count]
    octets = np.zeros((len(codes), 8), np.uint8)
    octets[:, :bits] = padded.reshape(-1, bits)
    words = octets.view(np.dtype("<u8")).reshape(-1)
    for index in range(8):
        codes[:, index] = (words >> np.uint64(bits * index)) & np.uint64((1 << bits) - 1)
    return codes.reshape(-1)[:count]
