"""Each encoding of a weight, as ONNX Runtime itself reads it, against the store's own meaning of the bits."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipelines.errors import LoweringError
from stages.lowering.limits import block_size
from stages.lowering.onnx import lower_program, supported_formats
from stages.lowering.onnx.weights import check_formats
from stages.quantizers.packing import pack_bits
from stages.quantizers.store import QuantizedStore, StoreWriter
from tests.weights import Described, described, write


def run(
    module: nn.Module, store: QuantizedStore, *inputs: np.ndarray, accuracy_level: int = 1, unpack: str = "never"
) -> np.ndarray:
    arguments = tuple(torch.from_numpy(array) for array in inputs)
    program = torch.export.export(module, arguments, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.onnx"
        lower_program(program, store, path, outputs=["y"], accuracy_level=accuracy_level, unpack_weights=unpack)
        session = onnxruntime.InferenceSession(path)
        feeds = {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}
        return session.run(["y"], feeds)[0]


@st.composite
def formats(draw, groups: tuple[int, ...] = (16, 32, 48, 64, 256, 0)) -> tuple[int, int, int, int, bool]:
    """rows, columns, bits, group size, symmetric."""
    group = draw(st.sampled_from(groups))
    columns = draw(st.integers(1, 300)) if group == 0 else group * draw(st.integers(1, 4))
    bits, symmetric = draw(st.sampled_from([2, 4, 8])), draw(st.booleans())
    return draw(st.integers(1, 20)), columns, bits, group or columns, symmetric


def random_store(path: Path, shape: tuple[int, ...], bits: int, group: int, symmetric: bool) -> QuantizedStore:
    random = np.random.default_rng(sum(shape) + bits)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    codes = random.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    scales = random.uniform(0.01, 1, (rows, columns // group)).astype(np.float16)
    points = None if symmetric else random.integers(0, 1 << bits, scales.shape).astype(np.uint8)
    with StoreWriter(path) as store:
        store.add_affine("weight", shape, bits, codes, scales, points)
    return QuantizedStore.open(path)


def stored(path: Path, weight: Described) -> QuantizedStore:
    with StoreWriter(path) as writer:
        write(writer, "weight", weight)
    return QuantizedStore.open(path)


@given(st.sampled_from([2, 4]), st.integers(1, 60), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_packing_is_that_of_onnx(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    kind = {2: onnx.TensorProto.UINT2, 4: onnx.TensorProto.UINT4}[bits]
    tensor = onnx.TensorProto(data_type=kind, dims=[count], raw_data=pack_bits(codes, bits).tobytes())
    assert (onnx.numpy_helper.to_array(tensor).astype(np.uint8) == codes).all()
    theirs = onnx.helper.make_tensor("codes", kind, [count], codes.astype(onnx.numpy_helper.to_array(tensor).dtype))
    assert theirs.raw_data in (b"", tensor.raw_data)
    assert (onnx.numpy_helper.to_array(theirs).astype(np.uint8) == codes).all()


@settings(max_examples=25, deadline=None)
@given(formats(), st.sampled_from([0, 1]))
def test_linear_reads_the_stored_bits(form, accuracy_level):
    rows, columns, bits, group, symmetric = form
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), (rows, columns), bits, group, symmetric)
        identity = np.eye(columns, dtype=np.float32)
        found = run(nn.Linear(columns, rows, bias=False), store, identity, accuracy_level=accuracy_level)
        np.testing.assert_array_equal(found.T, store.dense("weight"))


@settings(max_examples=25, deadline=None)
@given(formats(groups=(3, 7, 16, 24, 32, 48, 256, 0)))
@pytest.mark.parametrize("unpack", ["folded", "dequantized"])
def test_unpacked_linear_reads_the_stored_bits(unpack, form):
    rows, columns, bits, group, symmetric = form
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), (rows, columns), bits, group, symmetric)
        identity = np.eye(columns, dtype=np.float32)
        found = run(nn.Linear(columns, rows, bias=False), store, identity, unpack=unpack)
        np.testing.assert_array_equal(found.T, store.dense("weight"))


@settings(max_examples=25, deadline=None)
@given(formats())
def test_embedding_reads_the_stored_bits(form):
    rows, columns, bits, group, symmetric = form
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), (rows, columns), bits, group, symmetric)
        found = run(nn.Embedding(rows, columns), store, np.arange(rows)[None])
        np.testing.assert_array_equal(found[0], store.dense("weight"))


@settings(max_examples=25, deadline=None)
@given(formats())
def test_convolution_reads_the_stored_bits(form):
    rows, columns, bits, group, symmetric = form
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), (rows, columns, 1, 1), bits, group, symmetric)
        pixels = np.eye(columns, dtype=np.float32)[None, :, :, None]
        found = run(nn.Conv2d(columns, rows, 1, bias=False), store, pixels)
        np.testing.assert_array_equal(found[0, :, :, 0], store.dense("weight")[:, :, 0, 0])


@settings(max_examples=20, deadline=None)
@given(
    described(kinds=("affine",), bits={"affine": (2, 4, 8)}, kernels=((3, 3), (1, 5)), patterns=(None,)), st.booleans()
)
def test_wide_convolutions_read_the_stored_bits(weight, depthwise):
    """Each pixel of the input alone, in a batch: what comes out is the kernel."""
    rows, inputs, *kernel = weight.shape
    channels, groups = (rows, rows) if depthwise else (inputs, 1)
    if depthwise:
        inputs, weight = 1, by_channel(weight)
    with tempfile.TemporaryDirectory() as folder:
        store = stored(Path(folder), weight)
        module = nn.Conv2d(channels, rows, tuple(kernel), groups=groups, bias=False)
        pixels = np.eye(channels * math.prod(kernel), dtype=np.float32).reshape(-1, channels, *kernel)
        found = run(module, store, pixels)[:, :, 0, 0].T.reshape(rows, channels, *kernel)
        expected = weight.meaning().reshape(rows, inputs, *kernel)
        if depthwise:
            found = found[np.arange(rows), np.arange(rows)][:, None]
        np.testing.assert_array_equal(found, expected)


def by_channel(weight: Described) -> Described:
    """The first input's kernels alone, a scale for each."""
    size = math.prod(weight.shape[2:])
    codes, scales = weight.codes[:, :size], weight.scales[:, :1]
    points = None if weight.zero_points is None else weight.zero_points[:, :1]
    shape = (weight.rows, 1, *weight.shape[2:])
    return replace(weight, shape=shape, group_size=size, codes=codes, scales=scales, zero_points=points)


@pytest.mark.parametrize("shape", [(96, 64, 3, 3), (512, 256)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_file_holds_the_stored_bytes(tmp_path, shape, bits):
    store = random_store(tmp_path, shape, bits, int(np.prod(shape[1:])), True)
    module = nn.Conv2d(64, 96, 3, bias=False) if len(shape) == 4 else nn.Linear(256, 512, bias=False)
    inputs = torch.zeros(1, 64, 8, 8) if len(shape) == 4 else torch.zeros(1, 256)
    program = torch.export.export(module, (inputs,), strict=False)
    lower_program(program, store, tmp_path / "one.onnx", outputs=["y"], accuracy_level=1)
    size = (tmp_path / "one.onnx.data").stat().st_size
    assert store.total_bytes() <= size <= store.total_bytes() + 64


REFUSED = [
    (
        Described("affine", (4, 8), 3, 8, codes=np.zeros((4, 8), np.uint8), scales=np.ones((4, 1), np.float16)),
        "affine, 3 bits",
    ),
    (
        Described("affine", (4, 8), 6, 8, codes=np.zeros((4, 8), np.uint8), scales=np.ones((4, 1), np.float16)),
        "affine, 6 bits",
    ),
    (
        Described("palette", (4, 8), 2, codes=np.zeros((4, 8), np.uint8), palette=np.ones((1, 4), np.float16)),
        "a palette of 2 bits",
    ),
    (
        Described(
            "affine",
            (4, 8),
            4,
            8,
            codes=np.zeros((4, 8), np.uint8),
            scales=np.ones((4, 1), np.float16),
            mask=np.arange(32).reshape(4, 8) % 4 > 0,
        ),
        "sparse (25% zeros",
    ),
    (
        Described("float", (4, 8), values=np.ones((4, 8), np.float16), mask=np.eye(4, 8, dtype=bool)),
        "sparse (88% zeros",
    ),
]


@pytest.mark.parametrize(("weight", "message"), REFUSED)
def test_other_formats_are_refused_with_what_there_is(tmp_path, weight, message):
    store = stored(tmp_path, weight)
    with pytest.raises(LoweringError) as caught:
        check_formats(store)
    assert "weight 'weight' is" in caught.value.message and message in caught.value.message
    assert all(name in caught.value.hint for name in supported_formats())


@pytest.mark.parametrize(
    ("columns", "group", "block"),
    [
        (64, 32, 32),
        (64, 16, 16),
        (96, 48, 16),
        (96, 96, 32),
        (512, 512, 128),
        (20, 20, 32),
        (10, 10, 16),
        (64, 8, None),
    ],
)
def test_block_size(columns, group, block):
    assert block_size(columns, group) == block
