"""safetensors files: the same bytes however they are written, and every value as it was stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import StoreError
from stages.tensorfile import PlannedWriter, TensorReader, TensorWriter

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(5, dtype=np.int8),
    "c": np.ones((3,), np.float16),
    "empty": np.zeros((0, 4), np.float32),
}
PLAN = {"b": ("F32", (2, 3)), "a": ("I8", (5,)), "c": ("F16", (3,)), "empty": ("F32", (0, 4))}


def test_a_planned_file_has_the_bytes_of_a_spooled_one(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "spooled") as spooled:
        for name, array in ARRAYS.items():
            spooled.add(name, array)
    with PlannedWriter(tmp_path / "planned", PLAN) as planned:
        for name in reversed(planned.order()):
            for value in ARRAYS[name].reshape(-1):
                planned.write(name, value.tobytes())
    assert (tmp_path / "spooled").read_bytes() == (tmp_path / "planned").read_bytes()
    found = load_file(tmp_path / "planned")
    assert all(np.array_equal(found[name].numpy(), array) for name, array in ARRAYS.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["planned", "spooled"]


def test_a_planned_file_is_whole_or_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match="2 tensors were not written"),
        PlannedWriter(tmp_path / "file", PLAN) as writer,
    ):
        writer.write("a", ARRAYS["a"].tobytes())
    with pytest.raises(StoreError, match="'a' got more bytes"), PlannedWriter(tmp_path / "file", PLAN) as writer:
        writer.write("a", bytes(6))
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    tensor = torch.randn(7, 3).to(torch.bfloat16)
    save_file({"x": tensor}, tmp_path / "file")
    found = TensorReader(tmp_path / "file").array("x")
    assert found.dtype == np.float32 and np.array_equal(found, tensor.float().numpy())
