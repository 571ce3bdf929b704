"""Every format of the store: what is written is what is read, what it means, and what it weighs, to the byte."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pipelines.errors import StoreError
from stages.quantizers import store as stores
from stages.quantizers.packing import BIT_WIDTHS, pack_bits, unpack_some
from stages.quantizers.store import QuantizedStore, StoreWriter, TensorFormat
from tests.weights import Described, described, write


@given(st.sampled_from(BIT_WIDTHS), st.integers(0, 60), st.integers(0, 60), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_some_codes_are_unpacked_as_all_are(bits: int, first: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, first + count + 5).astype(np.uint8)
    packed = pack_bits(codes, bits)
    assert (unpack_some(packed, bits, first, count) == codes[first : first + count]).all()


@given(described())
@settings(deadline=None, max_examples=150)
def test_every_format_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, weight: Described) -> None:
    path = tmp_path_factory.mktemp("store")
    with StoreWriter(path) as writer:
        write(writer, "w", weight)
        formats = writer.formats()
    store = QuantizedStore.open(path)
    form = store.format("w")
    assert form == formats["w"] and form.needs() == weight.needs()
    assert store.dense("w").shape == weight.shape and store.dense("w").dtype == np.float32
    np.testing.assert_array_equal(store.dense("w").reshape(weight.rows, -1), weight.meaning())
    np.testing.assert_array_equal(store.mask("w"), weight.kept())
    assert form.kept == (weight.mask.sum() if weight.mask is not None else 0)
    parts = load_file(path / "weights.safetensors")
    assert form.bytes == sum(part.nbytes for part in parts.values()) == store.total_bytes()
    assert json.loads((path / "formats.json").read_text())["tensors"]["w"]["bytes"] == form.bytes


@given(described(), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_blocks_of_rows_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, weight: Described, block: int
) -> None:
    path = tmp_path_factory.mktemp("store")
    with StoreWriter(path) as writer:
        write(writer, "w", weight)
    store = QuantizedStore.open(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "_BLOCK", block)
        blocks = list(store.dense_blocks("w"))
    np.testing.assert_array_equal(np.concatenate([part for _, part in blocks]), weight.meaning())
    starts = np.cumsum([0, *(len(part) for _, part in blocks)])
    assert [start for start, _ in blocks] == starts[:-1].tolist()
    counts = weight.kept()[:: weight.vector].sum(1)
    assert [store.stored_before("w", row) for row in range(0, weight.rows, weight.vector)] == [
        int(counts[: row // weight.vector].sum()) for row in range(0, weight.rows, weight.vector)
    ]


def ternary(path: Path, **changes: object) -> TensorFormat:
    """Ternary weights, a scale a row, 2:4 sparse: what one palette of two entries and a mask say."""
    arguments = {
        "codes": np.array([[0, 1, 0, 0, 1, 1, 0, 0]] * 4, np.uint8),
        "palette": np.array([[-1, 1]], np.float16),
        "channel_scales": np.array([1, 2, 3, 4], np.float16),
        "mask": np.array([[True, True, False, False] * 2] * 4),
    }
    with StoreWriter(path) as writer:
        writer.add_palette("w", (4, 8), 1, **(arguments | changes))  # type: ignore[arg-type]
    return QuantizedStore.open(path).format("w")


def test_ternary_weights_are_a_palette_of_two_and_a_mask(tmp_path: Path) -> None:
    form = ternary(tmp_path)
    assert form.needs() == ("palette-1", "palette-channel-scales", "sparse")
    assert (form.kept, form.sparsity) == (16, 0.5)
    assert form.bytes == 32 // 8 + 16 // 8 + 2 * 2 + 4 * 2
    expected = np.outer([1, 2, 3, 4], [-1, 1, 0, 0, 1, 1, 0, 0])
    assert (QuantizedStore.open(tmp_path).dense("w") == expected).all()
    assert json.loads((tmp_path / "formats.json").read_text())["tensors"]["w"]["sparsity"] == 0.5


REFUSED = [
    ({"mask": np.ones((4, 8), np.uint8)}, "a mask uint8"),
    ({"mask": np.ones((4, 4), bool)}, "expected bool"),
    ({"mask": np.zeros((4, 8), bool)}, "keeps 0 of 32 weights"),
    ({"channel_scales": np.ones(3, np.float16)}, "channel scales of the wrong form"),
    ({"channel_scales": np.full(4, np.inf, np.float16)}, "a channel scale outside float16's range"),
    ({"palette": np.zeros((1, 2, 3), np.float16)}, "vectors of 3 in 4 rows"),
    ({"palette": np.zeros((1, 2, 1), np.float16)}, "has a palette"),
    ({"palette": np.zeros((1, 2, 2), np.float16)}, "expected uint8 (2, 8)"),
    ({"palette": np.zeros((2, 2, 2), np.float16), "group_size": 3}, "vectors of 2 in groups of 3 rows"),
    (
        {
            "palette": np.zeros((1, 2, 2), np.float16),
            "codes": np.zeros((2, 8), np.uint8),
            "mask": np.arange(32).reshape(4, 8) > 8,
        },
        "divides vectors of 2 rows",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(StoreError) as caught:
        ternary(tmp_path, **changes)
    assert "tensor 'w'" in str(caught.value) and message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


DAMAGES = [
    ('"kept": 16', '"kept": 8', "'w.codes' is ('U8', (2,))"),
    ('"kept": 16', '"kept": 9', "the mask of 'w' keeps 16 weights"),
    ('"kept": 16', '"kept": 0', "keeps 0 of 32 weights"),
    ('"channel_scale": true', '"channel_scale": false', "'w.channel_scales' is"),
    ('"sparse": true', '"sparse": false', "'w.codes' is"),
    ('"bits": 1', '"bits": 2', "'w.codes' is"),
    ('"bits": 1', '"bits": 5', "5 bits; expected one of"),
    ('"bytes": 18', '"bytes": 17', "takes 18 bytes, not 17"),
    ('"channel_scale": true', '"vector": 2', "'w."),
    ('"format": "palette"', '"format": "affine"', "has groups of 0 in 8 columns"),
]


@pytest.mark.parametrize(("old", "new", "message"), DAMAGES)
def test_a_contradiction_is_found_on_opening(tmp_path: Path, old: str, new: str, message: str) -> None:
    ternary(tmp_path)
    text = (tmp_path / "formats.json").read_text()
    assert old in text
    (tmp_path / "formats.json").write_text(text.replace(old, new, 1))
    with pytest.raises(StoreError) as caught:
        QuantizedStore.open(tmp_path)
    assert "is damaged" in str(caught.value) and message in str(caught.value), str(caught.value)


def test_a_damaged_mask_is_found_on_opening(tmp_path: Path) -> None:
    ternary(tmp_path)
    data = (tmp_path / "weights.safetensors").read_bytes()
    assert data.count(b"\x33\x33\x33\x33") == 1
    (tmp_path / "weights.safetensors").write_bytes(data.replace(b"\x33\x33\x33\x33", b"\x33\x33\x33\x37"))
    with pytest.raises(StoreError, match="the mask of 'w' keeps 17 weights"):
        QuantizedStore.open(tmp_path)


def test_parts_that_a_tensor_lacks_are_refused_by_name(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        writer.add_palette("w", (2, 4), 1, np.zeros((2, 4), np.uint8), np.zeros((1, 2), np.float16))
    store = QuantizedStore.open(tmp_path)
    with pytest.raises(StoreError, match="'w' is stored without a mask"):
        store.packed_mask("w")
    with pytest.raises(StoreError, match="'w' is stored without channel scales"):
        store.channel_scales("w")
    assert store.mask("w").all()
