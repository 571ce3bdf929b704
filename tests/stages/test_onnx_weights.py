"""Each encoding of a weight, as ONNX Runtime itself reads it, against the store's own meaning of the bits."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.lowering.limits import block_size
from stages.lowering.onnx import lower_program
from stages.quantizers.store import QuantizedStore, StoreWriter


def run(module: nn.Module, store: QuantizedStore, *inputs: np.ndarray) -> np.ndarray:
    arguments = tuple(torch.from_numpy(array) for array in inputs)
    program = torch.export.export(module, arguments, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.onnx"
        lower_program(program, store, path, outputs=["y"], accuracy_level=1)
        session = onnxruntime.InferenceSession(path)
        feeds = {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}
        return session.run(["y"], feeds)[0]


@st.composite
def formats(draw) -> tuple[int, int, int, int, bool]:
    """rows, columns, bits, group size, symmetric."""
    group = draw(st.sampled_from([16, 32, 48, 64, 256, 0]))
    columns = draw(st.integers(1, 100)) if group == 0 else group * draw(st.integers(1, 4))
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


@settings(max_examples=25, deadline=None)
@given(formats())
def test_linear_reads_the_stored_bits(form):
    rows, columns, bits, group, symmetric = form
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), (rows, columns), bits, group, symmetric)
        identity = np.eye(columns, dtype=np.float32)
        found = run(nn.Linear(columns, rows, bias=False), store, identity)
        np.testing.assert_allclose(found.T, store.dense("weight"), rtol=1e-6, atol=1e-6)


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
        np.testing.assert_allclose(found[0, :, :, 0], store.dense("weight")[:, :, 0, 0], rtol=1e-6, atol=1e-6)


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
