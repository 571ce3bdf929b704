"""calibrate: its statistics are those of the whole model run at once, whatever the batches, threads and kills."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.errors import StageError
from pipelines.workspace import Event, Progress, Workspace
from stages.artifacts import Calibration, Checkpoint
from stages.calibrate import calibrate
from stages.quantizers.examples import Sample, Tokens, answer_loss, causal, embed
from stages.quantizers.layers import quantizable_layers
from stages.quantizers.sequences import samples_of
from stages.quantizers.statistics import StatisticsReader, packed, unpacked
from stages.schema import CalibrateConfig, Draw
from tests.conf import group
from tests.toy import narrow_config, toy_checkpoint

torch.set_num_threads(1)


def configured(**changes: Any) -> CalibrateConfig:
    config = group("calibrate", "default", samples=5, batch=2, tokens=12, seed=3)
    assert isinstance(config, CalibrateConfig)
    return dataclasses.replace(config, **changes)


def calibrated(checkpoint: Checkpoint, run: Path, **changes: Any) -> Calibration:
    (run / "out").mkdir(parents=True)
    return calibrate(checkpoint, configured(**changes), Workspace(run / "out", run / "scratch"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The toy's decoder alone."""
    checkpoint = toy_checkpoint(tmp_path_factory.mktemp("text"), tied=True)
    state = {name: tensor for name, tensor in load_file(checkpoint.weights).items() if name.startswith("text.")}
    save_file(state, checkpoint.weights)
    values = checkpoint.read_json("config.json")
    del values["vision"], values["image_token_id"]
    checkpoint.write_json("config.json", {**values, "architecture": "qwen2"})
    settings = checkpoint.preprocessing()
    checkpoint.write_json("preprocessing.json", {**settings, "prompt_template": "{question}<|im_start|>"})
    return checkpoint


class Whole:
    """The simple way: the whole model, one sequence after the other, with hooks and one backward pass each."""

    def __init__(self, checkpoint: Checkpoint, samples: list[Sample], config: CalibrateConfig):
        self.model, self.checkpoint, self.config = checkpoint.model(), checkpoint, config
        self.layers = quantizable_layers(self.model)
        self.moments: dict[str, Any] = {}
        self.mass: dict[str, float] = {}
        self.fisher = {name: torch.zeros(layer.shape) for name, layer in self.layers.items()}
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and f"{name}.weight" in self.layers:
                module.register_forward_hook(self._hook(f"{name}.weight"))
        for sample in samples:
            self._run(sample)
        count = sum(len(sample.ids) - sample.prompt for sample in samples)
        self.fisher = {name: value / count for name, value in self.fisher.items()}

    def _run(self, sample: Sample) -> None:
        tokens, model, config = Tokens.of([sample]), self.model, self.config
        predicting = torch.nn.functional.pad(tokens.answers[0, 1:], (0, 1))
        weights = torch.where(predicting, config.answer_token_weight, 1.0)
        if sample.image is not None:
            weights[tokens.ids[0] == model.config.image_token_id] = config.image_token_weight
            from stages.data.image import preprocess

            pixels = torch.from_numpy(preprocess(sample.image, self.checkpoint.preprocessing()))
            self.weights = None
            features = model.encode(pixels)
            embeddings = embed(model, features, tokens)
        else:
            embeddings = model.text.embed_tokens(tokens.ids)
        self.weights = weights
        hidden = model.text.hidden(embeddings, causal(model, embeddings))
        taken, text = hidden[0], model.config.text
        if text.head_rank:
            self._add("text.lm_head.down.weight", taken, predicting.float())
            self._add("text.lm_head.up.weight", model.text.lm_head.down(taken), predicting.float())
        else:
            name = "text.embed_tokens.weight" if text.tie_word_embeddings else "text.lm_head.weight"
            self._add(name, taken, predicting.float())
        model.zero_grad()
        answer_loss(model.text.head(hidden), tokens).backward()
        for name, parameter in model.named_parameters():
            if name in self.layers and parameter.grad is not None:
                self.fisher[name] += parameter.grad.square()

    def _hook(self, name: str) -> Any:
        def observe(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            taken = inputs[0].movedim(1, -1) if isinstance(module, torch.nn.Conv2d) else inputs[0]
            taken = taken.reshape(-1, taken.shape[-1])
            if not name.startswith("text.lm_head."):
                self._add(name, taken, self.weights if name.startswith("text.") else torch.ones(len(taken)))

        return observe

    def _add(self, name: str, taken: torch.Tensor, weights: torch.Tensor) -> None:
        taken = taken.detach().double()
        self.moments[name] = self.moments.get(name, 0) + (taken * weights[:, None]).T @ taken
        self.mass[name] = self.mass.get(name, 0.0) + float(weights.sum())


def assert_same(found: StatisticsReader, expected: Whole) -> None:
    for name, moment in expected.moments.items():
        wanted = (moment / expected.mass[name]).float()
        torch.testing.assert_close(
            found.second_moment(name), wanted, rtol=2e-4, atol=2e-5 * float(wanted.diagonal().max())
        )
    for name, fisher in expected.fisher.items():
        torch.testing.assert_close(found.fisher(name), fisher, rtol=2e-3, atol=1e-5 * float(fisher.max()), msg=name)


WAYS = [{}, {"threads": 2, "batch": 5}, {"image_token_weight": 0.0, "answer_token_weight": 3.0}]


@pytest.mark.parametrize("changes", WAYS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_pieces_are_the_whole(tied: bool, changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = toy_checkpoint(tmp_path / "checkpoint", tied=tied)
    found = calibrated(checkpoint, tmp_path / "run", **changes)
    samples = samples_of(checkpoint, configured(**changes))
    assert_same(StatisticsReader(found.statistics), Whole(checkpoint, samples, configured(**changes)))


@pytest.mark.parametrize("changes", [{}, {"threads": 2, "batch": 5}])
@pytest.mark.parametrize("heads", [1, 3])
def test_the_pieces_are_the_whole_of_a_narrow_model(heads: int, changes: dict[str, Any], tmp_path: Path) -> None:
    """Heads of another width together than the states, and a head of two matrices, each with its own statistics."""
    checkpoint = toy_checkpoint(tmp_path / "checkpoint", config=narrow_config(num_attention_heads=heads))
    found = calibrated(checkpoint, tmp_path / "run", **changes)
    samples, read = samples_of(checkpoint, configured(**changes)), StatisticsReader(found.statistics)
    assert read.second_moment("text.lm_head.up.weight").shape == (48, 48)
    assert read.fisher("text.lm_head.down.weight").shape == (48, 64)
    assert_same(read, Whole(checkpoint, samples, configured(**changes)))


def test_a_decoder_alone(text_model: Checkpoint, tmp_path: Path) -> None:
    changes = {"draw": Draw.tokens}
    found = calibrated(text_model, tmp_path, **changes)
    samples = samples_of(text_model, configured(**changes))
    assert [len(sample.ids) for sample in samples] == [12] * 5 and len({tuple(each.ids) for each in samples}) == 5
    assert_same(StatisticsReader(found.statistics), Whole(text_model, samples, configured(**changes)))


def test_a_triangle_is_the_whole() -> None:
    matrix = torch.randn(7, 7)
    assert torch.equal(unpacked(packed(matrix + matrix.T)), matrix + matrix.T)


def test_without_gradients(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Second moments are the same bits, files that nobody needs go at once, and what is missing is said."""
    full, half = (calibrated(checkpoint, tmp_path / str(fisher), fisher=fisher) for fisher in (True, False))
    found, expected = load_file(half.statistics), load_file(full.statistics)
    assert found.keys() == {name for name in expected if not name.endswith(".fisher")}
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert half.read_json("sensitivity.json") == {} and len(full.read_json("sensitivity.json")) > 10
    assert not list((tmp_path / "False/scratch/hidden").rglob("*.npy"))
    with pytest.raises(StageError, match=r"no fisher of projector\.0\.weight\n.*calibrate.fisher=false"):
        StatisticsReader(half.statistics).fisher("projector.0.weight")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", [1, 9, 19, 24, 30, 47])
def test_it_goes_on_where_it_was_killed(moment: int, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Killed at that event; finished pieces are not run again, and the bytes are those of a run in one go."""
    events: list[Event] = []

    def send(event: Event) -> None:
        events.append(event)
        if len(events) == moment:
            raise Killed

    def texts(found: list[Event]) -> set[str]:
        return {" ".join(event.text.split()[:2]) for event in found if isinstance(event, Progress)}

    whole = calibrated(checkpoint, tmp_path / "whole")
    (tmp_path / "out").mkdir()
    with pytest.raises(Killed):
        calibrate(checkpoint, configured(), Workspace(tmp_path / "out", tmp_path / "scratch", send))
    before = texts(events)
    del events[:]
    moment = 0
    again = calibrate(checkpoint, configured(), Workspace(tmp_path / "out", tmp_path / "scratch", send))
    assert len(texts(events) & before) <= 1
    last = events[-1]
    assert isinstance(last, Progress) and last.done == pytest.approx(last.total) and "0 s to go" in last.text
    for file in whole.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes(), file


def test_unsound_layers_are_named(tmp_path: Path) -> None:
    broken = toy_checkpoint(tmp_path / "broken")
    state = load_file(broken.weights)
    state["vision.stages.1.downsample.pointwise.bias"][:] = float("nan")
    save_file(state, broken.weights)
    with pytest.raises(StageError, match=r"the output of vision\.stages\.1\.downsample\.pointwise is not finite"):
        calibrated(broken, tmp_path / "run")
    with pytest.raises(StageError, match=r"the calibration set is empty\n.*calibrate.samples"):
        calibrated(broken, tmp_path / "empty", samples=0)


def own(path: Path, questions: list[Any] | None = None, text: list[Any] | None = None, plain: str = "") -> Path:
    """A folder of the user's: an image a.png; lines are objects, or text that stands as it is."""
    path.mkdir()
    Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)).save(path / "a.png")
    (path / "broken.png").write_bytes(b"no image")
    for name, lines in (("questions.jsonl", questions), ("text.jsonl", text)):
        if lines is not None:
            written = [line if isinstance(line, str) else json.dumps(line) for line in lines]
            (path / name).write_text("\n".join(written) + "\n", encoding="utf-8")
    if plain:
        (path / "plain.txt").write_text(plain, encoding="utf-8")
    return path


ASKED = {"image": "a.png", "question": "what?", "answer": "yes"}


def test_own_questions_and_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Together, in one run: the tower sees the questions' images alone."""
    folder = own(tmp_path / "own", [ASKED, "", {**ASKED, "answer": "no"}], [{"text": "twenty-four letters here"}])
    config = configured(path=str(folder), samples=10)
    samples = samples_of(checkpoint, config)
    assert [sample.image is not None for sample in samples] == [True, True, False, False]
    assert [len(sample.ids) for sample in samples[2:]] == [12, 12] and samples[2].prompt == 1
    found = calibrated(checkpoint, tmp_path / "run", path=str(folder), samples=10)
    assert_same(StatisticsReader(found.statistics), Whole(checkpoint, samples, config))
    few = samples_of(checkpoint, configured(path=str(folder), samples=2))
    assert len(few) == 2 and few == samples_of(checkpoint, configured(path=str(folder), samples=2))


def test_text_alone_leaves_the_tower_unmeasured(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = own(tmp_path / "own", plain="some text, long enough for a sequence or two")
    found = StatisticsReader(calibrated(checkpoint, tmp_path / "run", path=str(folder)).statistics)
    assert found.second_moment("text.layers.0.mlp.up_proj.weight").shape == (64, 64)
    with pytest.raises(StageError, match=r"no second moment of projector\.0\.weight\n.*questions\.jsonl"):
        found.second_moment("projector.0.weight")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, r"holds no sequence.*\n.*questions\.jsonl, text\.jsonl or \*\.txt"),
    ({"questions": [ASKED, "{"]}, r"questions\.jsonl, line 2: no JSON"),
    ({"questions": ["", "3"]}, r"questions\.jsonl, line 2: '3' is no object"),
    (
        {"questions": [{"image": "a.png", "question": "what?", "anwser": "x"}]},
        r"line 1: there is no 'answer'.*\n.*anwser",
    ),
    ({"questions": [{**ASKED, "answer": " "}]}, r"line 1: 'answer' is ' '"),
    ({"questions": [{**ASKED, "image": "b.png"}]}, r"line 1: there is no image b\.png\n.*a\.png"),
    ({"questions": [{**ASKED, "image": "broken.png"}]}, r"questions\.jsonl, line 1: .*cannot be read as an image"),
    ({"questions": [{**ASKED, "question": "<image>"}]}, r"questions\.jsonl, line 1: .*holds the image token"),
    ({"text": [{"text": "a"}, {"text": 7}]}, r"text\.jsonl, line 2: 'text' is 7"),
    ({"plain": "an <image> in it"}, r"the text in .* holds the image token"),
]


@pytest.mark.parametrize(("contents", "message"), WRONG)
def test_what_is_wrong_with_own_data(
    contents: dict[str, Any], message: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = own(tmp_path / "own", **contents)
    with pytest.raises(StageError, match=f"(?s){message}"):
        samples_of(checkpoint, configured(path=str(folder)))
