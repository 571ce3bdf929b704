"""Deltas: what they make is the new file, byte for byte, or nothing; whatever the delta's bytes are."""

import hashlib
import random
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import StoreError, VerificationError
from stages.release.deltas import delta as deltas
from stages.release.deltas.delta import apply_delta, make_delta
from stages.release.deltas.delta_coding import BLOCK, Kind, Stream, add_nibbles, decode, encode, packed, unpacked
from stages.release.deltas.delta_format import HEADER, STREAM, WrongBaseError, read_delta
from stages.release.deltas.tensor_layout import Element

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a disk takes its time to make each of thousands lasting
RECORD = struct.Struct("<IIQQQ32x")
NAME = "decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
KINDS = {Element.BITS_4: 11, Element.BITS_8: 4, Element.BITS_16: 1, Element.BITS_32: 2}


def weight_bin(tensors: list[tuple[Element, bytes]]) -> bytes:
    data = bytearray(struct.pack("<II56x", len(tensors), 2))
    for element, values in tensors:
        data += bytes(-len(data) % 64)
        data += RECORD.pack(0xDEADBEEF, KINDS[element], len(values), len(data) + 64, 0) + values
    return bytes(data)


def retrained(values: bytes, element: Element, rate: float, seed: int) -> bytes:
    """Values of which a share moved, most of them by one."""
    rng = np.random.default_rng(seed)
    old = np.frombuffer(values, np.uint8)
    if element in (Element.BITS_16, Element.BITS_32) and len(old) % (element // 8) == 0:
        kind = np.dtype(f"<i{element // 8}")
        move = np.where(rng.random(len(old) * 8 // element) < rate, rng.integers(-40, 40, len(old) * 8 // element), 0)
        return (old.view(kind) + move.astype(kind)).tobytes()
    codes = unpacked(old) if element is Element.BITS_4 else old
    move = np.where(rng.random(len(codes)) < rate, rng.choice([1, -1, 1, -1, 1, -1, 3, -5], len(codes)), 0)
    moved = codes + move.astype(np.uint8)
    return (packed(moved & 15) if element is Element.BITS_4 else moved).tobytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def made(folder: Path, old: bytes, new: bytes, name: str = NAME) -> bytes | None:
    """The delta's bytes, or None."""
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    size = make_delta(folder / "old", folder / "new", folder / "delta", name, None, None)
    if size is None:
        assert not (folder / "delta").exists()
        return None
    data = (folder / "delta").read_bytes()
    assert size == len(data) < len(new)
    return data


def applied(folder: Path, delta: bytes, old: bytes, new: bytes) -> bytes:
    """What the delta makes; its claim must be `new`'s."""
    (folder / "old").write_bytes(old)
    (folder / "delta").write_bytes(delta)
    (folder / "out").unlink(missing_ok=True)
    apply_delta(folder / "delta", folder / "old", folder / "out", expected_size=len(new), expected_sha256=sha256(new))
    return (folder / "out").read_bytes()


ELEMENTS = st.sampled_from(list(KINDS))
TENSORS = st.lists(
    st.tuples(ELEMENTS, st.integers(1, 700), st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.booleans()), max_size=6
)


@given(tensors=TENSORS, seed=st.integers(0, 99), tail=st.binary(max_size=9))
@settings(max_examples=40)
def test_any_tensors_come_back(tensors, seed, tail):
    """Odd lengths, tensors that grew or went, tails."""
    rng = random.Random(seed)
    old, new = [], []
    for element, length, rate, same in tensors:
        values = rng.randbytes(length)
        old.append((element, values))
        new.append((element, retrained(values, element, rate, seed) if same else rng.randbytes(length + 3)))
    _comes_back(weight_bin(old[: len(old) - seed % 2]), weight_bin(new) + tail)


@given(old=st.binary(min_size=1, max_size=400), new=st.binary(min_size=1, max_size=400))
def test_any_bytes_come_back(old, new):
    _comes_back(old, new)
    _comes_back(old, old + new)


def _comes_back(old: bytes, new: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(deltas, "WORTH", 1e9)
        for path in (NAME, "tokenizer.json"):
            (Path(name) / "old").write_bytes(old)
            (Path(name) / "new").write_bytes(new)
            make_delta(Path(name, "old"), Path(name, "new"), Path(name, "delta"), path, None, None)
            assert applied(Path(name), Path(name, "delta").read_bytes(), old, new) == new


@pytest.mark.parametrize("element", [Element.BITS_4, Element.BITS_8, Element.BITS_16, Element.BITS_32])
@pytest.mark.parametrize(("rate", "length"), [(0.001, 4096), (0.1, 4096), (0.1, 4095), (0.9, 4097), (1.0, 1)])
def test_a_block_comes_back(element, rate, length):
    values = random.Random(length).randbytes(length)
    old, new = (np.frombuffer(each, np.uint8) for each in (values, retrained(values, element, rate, 3)))
    coded = encode(old, new, element)
    places = dict.fromkeys(Stream, 0)

    def take(stream: Stream, count: int) -> np.ndarray:
        places[stream] += count
        data = coded.parts[stream][places[stream] - count : places[stream]]
        assert len(data) == count
        return np.frombuffer(data, np.uint8)

    if coded.kind is not Kind.LITERAL:
        assert np.array_equal(decode(coded.kind, old, coded.gaps, coded.rare, take), new)
        assert all(places[stream] == len(data) for stream, data in coded.parts.items())


def test_halves_of_bytes_add_modulo_16():
    left, right = (each.ravel().astype(np.uint8) for each in np.meshgrid(np.arange(256), np.arange(256)))
    expected = ((left & 15) + (right & 15) & 15) | (((left >> 4) + (right >> 4) & 15) << 4)
    assert np.array_equal(add_nibbles(left, right), expected)


@pytest.mark.parametrize(
    ("element", "rate", "most"),
    [
        (Element.BITS_4, 0.1, 0.16),
        (Element.BITS_4, 0.01, 0.028),
        (Element.BITS_8, 0.02, 0.024),
        (Element.BITS_16, 0, 0),
    ],
)
def test_a_small_change_makes_a_small_delta(tmp_path, element, rate, most):
    """Within 10 % of the entropy of where and what, and 600 bytes: 0.1 of int4 codes moved is 0.149 of its bytes."""
    values = random.Random(5).randbytes(3 * BLOCK + 31)
    if element is Element.BITS_16:
        values += b"x"
    codes = np.frombuffer(values, np.uint8)
    rng = np.random.default_rng(1)
    count = len(codes) * (2 if element is Element.BITS_4 else 1)
    move = np.where(rng.random(count) < rate, rng.choice(np.array([1, 255], np.uint8), count), 0).astype(np.uint8)
    fresh = packed((unpacked(codes) + move) & 15) if element is Element.BITS_4 else codes + move
    old, new = weight_bin([(element, values)]), weight_bin([(element, fresh.tobytes())])
    delta = made(tmp_path, old, new)
    assert delta is not None and len(delta) <= most * len(new) + 600
    assert applied(tmp_path, delta, old, new) == new
    assert made(tmp_path, old, new) == delta  # the same bytes again


def test_a_text_is_compressed_with_the_old_one_at_hand(tmp_path):
    rng = random.Random(3)
    old = "".join(f'"{rng.randbytes(6).hex()}": {place},\n' for place in range(20_000)).encode()
    new = old.replace(b": 777,", b": 778,") + b"end"
    delta = made(tmp_path, old, new, "tokenizer.json")
    assert delta is not None and len(delta) < 400
    assert applied(tmp_path, delta, old, new) == new


def test_weights_of_an_unknown_layout_are_compared_byte_by_byte(tmp_path):
    """As in an .ort file: a text in front, and all in place. Then one piece of it is replaced by what is nowhere."""
    rng = random.Random(7)
    values = rng.randbytes(BLOCK + 99)
    old, new = b"graph" * 99 + values, b"graph" * 99 + retrained(values, Element.BITS_8, 0.02, 6)
    delta = made(tmp_path, old, new, "decoder.ort")
    assert delta is not None and len(delta) < 0.035 * len(new)
    assert applied(tmp_path, delta, old, new) == new
    old, new = old * 6, old * 5 + rng.randbytes(len(old) + 5)
    delta = made(tmp_path, old, new, "decoder.ort")
    assert delta is not None and len(delta) < 1.1 * len(new) / 6
    assert applied(tmp_path, delta, old, new) == new


@pytest.mark.parametrize("old", [b"", random.Random(1).randbytes(5000)])
def test_where_nothing_is_alike_there_is_no_delta(tmp_path, old):
    assert made(tmp_path, old, random.Random(2).randbytes(5000)) is None
    assert made(tmp_path, b"old", b"") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def sample() -> tuple[bytes, bytes]:
    """A file with every kind of block in it, and its successor."""
    rng = random.Random(11)
    old, new = [], []
    for element in KINDS:
        for rate in (0.0, 0.05, 0.9):
            values = rng.randbytes(600)
            old.append((element, values))
            new.append((element, retrained(values, element, rate, 4)))
    new.append((Element.BITS_8, rng.randbytes(50)))
    return weight_bin(old), weight_bin(new) + weight_bin(old)[300:900]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> tuple[bytes, bytes, bytes]:
    old, new = sample()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deltas, "WORTH", 1e9)
        delta = made(tmp_path_factory.mktemp("sampled"), old, new)
    assert delta is not None
    return old, new, delta


def test_the_sample_has_every_kind_of_block(sampled, tmp_path):
    (tmp_path / "delta").write_bytes(sampled[2])
    with (tmp_path / "delta").open("rb") as file:
        kinds = set(read_delta(file, tmp_path).blocks.kind.tolist())
    assert kinds >= set(Kind) - {Kind.DENSE_4, Kind.DENSE_8}


def test_another_base_is_refused(sampled, tmp_path):
    old, new, delta = sampled
    for base in (old + b"x", new, old[:-1] + bytes([old[-1] ^ 1])):
        with pytest.raises(WrongBaseError, match="starts from a file of"):
            applied(tmp_path, delta, base, new)
        assert not (tmp_path / "out").exists()


def test_another_result_than_the_expected_is_refused(sampled, tmp_path):
    old, new, delta = sampled
    for other in (new + b"x", new[:-1] + b"x"):
        with pytest.raises(VerificationError, match="expected"):
            applied(tmp_path, delta, old, other)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "old"]


def test_every_cut_and_every_flipped_byte_is_refused(sampled):
    """Or makes the new file all the same: a few bytes of a compressed frame say nothing of its contents."""
    old, new, delta = sampled
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        for length in range(0, len(delta), 13):
            with pytest.raises(VerificationError):
                applied(Path(name), delta[:length], old, new)
        for place in range(0, len(delta), 5):
            _refused_or_right(Path(name), delta[:place] + bytes([delta[place] ^ 0x41]) + delta[place + 1 :], old, new)


@given(data=st.data())
@settings(max_examples=100)
def test_no_bytes_do_harm(sampled, data):
    """Mutations, and tables that are sound zstd around wrong numbers."""
    old, new, delta = sampled
    mutated = bytearray(delta)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        mutated[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        _refused_or_right(Path(name), bytes(mutated), old, new)
        _refused_or_right(Path(name), with_table(delta, lambda table: _mutated(data, table)), old, new)


def _mutated(data: st.DataObject, table: bytearray) -> None:
    for _ in range(data.draw(st.integers(1, 4))):
        table[data.draw(st.integers(0, len(table) - 1))] = data.draw(st.integers(0, 255))


def with_table(delta: bytes, change) -> bytes:
    """The delta with another table of blocks, compressed as it should be."""
    fields = list(HEADER.unpack_from(delta))
    start = HEADER.size + fields[2] * STREAM.size
    table = bytearray(zstandard.ZstdDecompressor().decompress(delta[start : start + fields[8]]))
    change(table)
    fresh = zstandard.ZstdCompressor().compress(bytes(table))
    behind = delta[start + fields[8] :]
    fields[8] = len(fresh)
    return HEADER.pack(*fields) + delta[HEADER.size : start] + fresh + behind


def _refused_or_right(folder: Path, delta: bytes, old: bytes, new: bytes) -> None:
    try:
        assert applied(folder, delta, old, new) == new
    except VerificationError:
        assert sorted(path.name for path in folder.iterdir()) == ["delta", "old"]


def _bomb(raw: int, window_log: int) -> bytes:
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return b"".join([*(compressor.compress(bytes(1 << 20)) for _ in range(raw >> 20)), compressor.flush()])


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ({Stream.LITERAL: _bomb(64 << 20, 20)}, None),  # more than is asked for: never unpacked
        ({Stream.LITERAL: _bomb(64 << 20, 27)}, "memory"),  # wants to look back over 128 MiB
        ({Stream.LITERAL: b"no zstd at all"}, "literal"),
        ({}, "literal ends too early"),
    ],
)
def test_bombs_do_not_go_off(tmp_path, streams, expected):
    """A delta of one literal block, whose stream is something else."""
    old, new = b"old", bytes(1000)
    columns = [np.array([value], kind).tobytes() for value, kind in zip((7, 1000, 0, 0, 0), "BIqII", strict=True)]
    table = zstandard.ZstdCompressor().compress(b"".join(columns))
    head = HEADER.pack(
        b"TAPDELTA",
        1,
        len(streams),
        1,
        hashlib.sha256(old).digest(),
        len(old),
        hashlib.sha256(new).digest(),
        len(new),
        len(table),
    )
    listed = b"".join(STREAM.pack(stream, len(data)) for stream, data in streams.items())
    delta = head + listed + table + b"".join(streams.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if expected is None:
        assert applied(tmp_path, delta, old, new) == new
    else:
        with pytest.raises(VerificationError, match=expected):
            applied(tmp_path, delta, old, new)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB


def test_a_file_that_is_not_there_is_a_store_error(sampled, tmp_path):
    _, new, delta = sampled
    (tmp_path / "delta").write_bytes(delta)
    with pytest.raises(StoreError, match="cannot be read"):
        apply_delta(
            tmp_path / "delta", tmp_path / "old", tmp_path / "out", expected_size=len(new), expected_sha256=sha256(new)
        )


APPLY = """
import sys
from pathlib import Path
from stages.release.deltas.delta import apply_delta
apply_delta(*map(Path, sys.argv[1:4]), expected_size=int(sys.argv[4]), expected_sha256=sys.argv[5])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """32 MiB of codes through a process that stays below 64 MiB, its libraries included."""
    monkeypatch.setattr(deltas, "LARGE", 0)
    block = random.Random(9).randbytes(1 << 20)
    moved = retrained(block, Element.BITS_4, 0.1, 1)
    old, new = weight_bin([(Element.BITS_4, block * 32)]), weight_bin([(Element.BITS_4, moved * 32)])
    assert made(tmp_path, old, new) is not None
    words = [sys.executable, "-c", APPLY, *(str(tmp_path / name) for name in ("delta", "old", "out"))]
    told = subprocess.run([*words, str(len(new)), sha256(new)], check=True, capture_output=True, text=True)
    assert int(told.stdout) < 64 * 1024  # KiB
    assert (tmp_path / "out").read_bytes() == new
