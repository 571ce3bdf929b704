"""The neutral store: packing, round trips, bytes that depend on contents alone, damage found on opening."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pipelines.errors import StoreError
from stages.quantizers.packing import BIT_WIDTHS, pack_bits, packed_size, unpack_bits
from stages.quantizers.store import QuantizedStore, StoreWriter


@given(st.sampled_from(BIT_WIDTHS), st.integers(0, 70), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_packing_is_the_little_endian_bit_stream(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    packed = pack_bits(codes, bits)
    stream = sum(int(code) << (bits * index) for index, code in enumerate(codes))
    assert packed.tobytes() == stream.to_bytes(packed_size(count, bits), "little")
    assert (unpack_bits(packed, bits, count) == codes).all()


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_packing_is_seamless_over_its_chunks(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (1 << 20) + 13).astype(np.uint8)
    packed = pack_bits(codes, bits)
    wide = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little")
    assert (packed == np.packbits(wide.reshape(-1), bitorder="little")).all()
    assert (unpack_bits(packed, bits, codes.size) == codes).all()


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="code 8 does not fit in 3 bits"):
        pack_bits(np.array([8], np.uint8), 3)
    with pytest.raises(ValueError, match="5 bits; expected one of 1, 2, 3"):
        pack_bits(np.zeros(3, np.uint8), 5)
    with pytest.raises(ValueError, match="expected 3"):
        unpack_bits(np.zeros(2, np.uint8), 4, 5)


def example(path: Path, order: int = 1, seed: int = 0) -> QuantizedStore:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 16, (6, 32)).astype(np.uint8)
    scales = generator.uniform(0.01, 0.1, (6, 2)).astype(np.float16)
    zeros = generator.integers(0, 16, (6, 2)).astype(np.uint8)
    palette = np.sort(generator.normal(size=(3, 8))).astype(np.float16)
    path.mkdir(parents=True, exist_ok=True)
    with StoreWriter(path) as writer:
        additions = [
            lambda: writer.add_float("norm", np.arange(5, dtype=np.float32)),
            lambda: writer.add_float("bias", np.arange(3, dtype=np.float16), reason="a bias"),
            lambda: writer.add_affine("affine", (6, 32), 4, codes, scales, zeros),
            lambda: writer.add_affine("conv", (6, 32, 1, 1), 4, codes, scales, None),
            lambda: writer.add_palette("palette", (6, 32), 3, codes % 8, palette, 2),
        ]
        for add in additions[::order]:
            add()
    return QuantizedStore.open(path)


def test_dense_is_what_the_formats_say(tmp_path: Path) -> None:
    store = example(tmp_path)
    assert store.names() == ["affine", "bias", "conv", "norm", "palette"]
    codes, scales, zeros = store.codes("affine"), store.scales("affine"), store.zero_points("affine")
    expected = np.repeat(scales.astype(np.float32), 16, 1) * (codes.astype(np.float32) - np.repeat(zeros, 16, 1))
    assert (store.dense("affine") == expected).all()
    assert store.dense("conv").shape == (6, 32, 1, 1) and (store.zero_points("conv") == 8).all()
    rows = np.repeat(store.palette("palette"), 2, 0).astype(np.float32)
    assert (store.dense("palette") == np.take_along_axis(rows, store.codes("palette").astype(int), 1)).all()
    assert store.format("bias").reason == "a bias" and store.dense("bias").dtype == np.float32


def test_bytes_are_the_packed_sizes_and_the_file_holds_little_else(tmp_path: Path) -> None:
    store = example(tmp_path)
    assert store.format("affine").bytes == 6 * 32 // 2 + 6 * 2 * 2 + 6
    assert store.format("palette").bytes == 6 * 32 * 3 // 8 + 3 * 8 * 2
    tensors = load_file(tmp_path / "weights.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == store.total_bytes()
    totals = json.loads((tmp_path / "formats.json").read_text())["totals"]
    assert totals["bytes"] == store.total_bytes() and totals["parameters"] == 3 * 192 + 8


def test_bytes_depend_on_the_tensors_and_not_on_their_order(tmp_path: Path) -> None:
    for name, order in (("a", 1), ("b", -1)):
        example(tmp_path / name, order)
    for file in ("weights.safetensors", "formats.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["formats.json", "weights.safetensors"]


@given(
    st.sampled_from(BIT_WIDTHS),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, bits: int, rows: int, groups: int, size: int, symmetric: bool, seed: int
) -> None:
    path = tmp_path_factory.mktemp("store")
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 1 << bits, (rows, groups * size)).astype(np.uint8)
    scales = generator.normal(size=(rows, groups)).astype(np.float16)
    zeros = None if symmetric else generator.integers(0, 1 << bits, (rows, groups)).astype(np.uint8)
    palette = generator.normal(size=(-(-rows // size), 1 << bits)).astype(np.float16)
    with StoreWriter(path) as writer:
        writer.add_affine("a", codes.shape, bits, codes, scales, zeros)
        writer.add_palette("p", codes.shape, bits, codes, palette, size)
    store = QuantizedStore.open(path)
    assert (store.codes("a") == codes).all() and (store.codes("p") == codes).all()
    assert (store.scales("a") == scales).all() and (store.palette("p") == palette).all()
    assert (store.zero_points("a") == (zeros if zeros is not None else 1 << (bits - 1))).all()
    assert store.format("a").groups == groups


def truncate(path: Path) -> None:
    weights = path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def promise_more(path: Path) -> None:
    text = (path / "formats.json").read_text()
    (path / "formats.json").write_text(text.replace('"group_size": 16', '"group_size": 8', 1))


DAMAGES = [
    (truncate, ["weights.safetensors is truncated", "bytes found", "Copy or download it again"]),
    (promise_more, ["'affine.scales' is ('F16', (6, 2))", "says ('F16', (6, 4))", "Build the quantize stage again"]),
    (lambda path: (path / "formats.json").unlink(), ["formats.json is missing"]),
    (lambda path: (path / "weights.safetensors").unlink(), ["weights.safetensors is missing"]),
    (lambda path: (path / "formats.json").write_text("{"), ["formats.json is damaged"]),
    (lambda path: (path / "formats.json").write_text('{"tensors": {"a": {}}}'), ["formats.json is damaged"]),
]


@pytest.mark.parametrize(("damage", "parts"), DAMAGES)
def test_damage_is_found_on_opening(tmp_path: Path, damage: object, parts: list[str]) -> None:
    example(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(StoreError) as caught:
        QuantizedStore.open(tmp_path)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_errors_name_the_tensor(tmp_path: Path) -> None:
    store = example(tmp_path)
    with pytest.raises(StoreError, match="did you mean 'palette'"):
        store.codes("palete")
    with pytest.raises(StoreError, match="'norm' is stored as float"):
        store.scales("norm")
    codes, scales = np.full((2, 4), 9, np.uint8), np.ones((2, 1), np.float16)
    with pytest.raises(StoreError, match="'w' has a code that needs over 3 bits"), StoreWriter(tmp_path) as writer:
        writer.add_affine("w", (2, 4), 3, codes, scales, None)
    with pytest.raises(StoreError, match="'w' holds NaN"), StoreWriter(tmp_path) as writer:
        writer.add_float("w", np.array([np.nan], np.float16))


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), StoreWriter(tmp_path) as writer:
        writer.add_float("w", np.ones(3, np.float16))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
