"""What lets quantizing go on after a kill: results come back from disk as they were."""

from pathlib import Path

import pytest
import torch

from stages.quantizers.results import Affine, Float, Palette
from stages.quantizers.resume import Finished, Result

torch.set_num_threads(1)
CODES, MASK = torch.arange(12, dtype=torch.uint8).reshape(3, 4), torch.tensor([[True, False] * 2] * 3)
RESULTS: dict[str, Result] = {
    "affine": Affine(CODES, torch.rand(3, 2).half(), torch.ones(3, 2, dtype=torch.uint8)),
    "sparse": Affine(CODES, torch.rand(3, 2).half(), torch.ones(3, 2, dtype=torch.uint8), MASK),
    "palette": Palette(CODES, torch.rand(1, 16).half(), 3),
    "vectors": Palette(CODES[:1] % 4, torch.rand(1, 4, 2).half(), 2, torch.rand(2).half()),
    "float": Float(torch.rand(3, 4), MASK),
}


@pytest.mark.parametrize("name", RESULTS)
def test_finished_weights_come_back(name: str, tmp_path: Path) -> None:
    result, finished = RESULTS[name], Finished(tmp_path / "finished")
    assert finished.get(name) is None and name not in finished
    finished.keep(name, result)
    found = Finished(tmp_path / "finished").get(name)
    assert found is not None and type(found) is type(result) and torch.equal(found.dense(), result.dense())
    for key, value in vars(result).items():
        other = getattr(found, key)
        if isinstance(value, torch.Tensor):
            assert torch.equal(other, value) and other.dtype == value.dtype
        else:
            assert other == value


def test_a_result_that_was_cut_short_is_none(tmp_path: Path) -> None:
    (tmp_path / "affine.safetensors.spool").write_bytes(b"cut short")
    assert Finished(tmp_path).get("affine") is None
    Finished(tmp_path).keep("affine", RESULTS["affine"])
    assert "affine" in Finished(tmp_path)
