"""What lets quantizing go on after a kill: results come back from disk as they were."""

from pathlib import Path

import pytest
import torch

from pipelines.workspace import Event, Progress, Workspace
from stages.calibrate import calibrate
from stages.quantize import quantize
from stages.quantizers.results import Affine, Float, Palette
from stages.quantizers.resume import Finished, Result
from tests.tiny import group
from tests.toy import toy_checkpoint

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


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", [2, 9])
def test_quantize_goes_on_where_it_was_killed(moment: int, tmp_path: Path) -> None:
    """Killed at that event: only what was not finished is computed, and the bytes are those of a run in one go."""
    checkpoint = toy_checkpoint(tmp_path / "checkpoint")
    for name in ("calibration", "whole", "out"):
        (tmp_path / name).mkdir()
    calibration = calibrate(
        checkpoint, group("calibrate", "default", samples=2), Workspace(tmp_path / "calibration", tmp_path / "scratch0")
    )
    events: list[Event] = []

    def send(event: Event) -> None:
        events.append(event)
        if len(events) == moment:
            raise Killed

    config = group("quantize", "int4")
    whole = quantize(checkpoint, config, Workspace(tmp_path / "whole", tmp_path / "scratch1"), calibration)
    with pytest.raises(Killed):
        quantize(checkpoint, config, Workspace(tmp_path / "out", tmp_path / "scratch2", send), calibration)
    seen = {event.text.partition(",")[0] for event in events if isinstance(event, Progress)}
    assert not list((tmp_path / "out").iterdir())
    del events[:]
    moment = 0
    again = quantize(checkpoint, config, Workspace(tmp_path / "out", tmp_path / "scratch2", send), calibration)
    progress = [event for event in events if isinstance(event, Progress)]
    assert not seen & {event.text.partition(",")[0] for event in progress} and "to go" in progress[-1].text
    assert progress[-1].done == pytest.approx(progress[-1].total)
    for file in whole.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes(), file
