"""A small model with random weights that answers each question otherwise, and held-out questions that it knows."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.workspace import Workspace
from stages.artifacts import Artifact, Baseline, Checkpoint, DeviceModel, Evaluation, QuantizedModel
from stages.baseline import baseline
from stages.convert import convert
from stages.data.asked import read_asked
from stages.evaluate import evaluate
from stages.evaluation.answers import read_answers
from stages.load import load
from stages.quantize import quantize
from stages.schema import ModelConfig, QuestionsConfig
from tests.conf import group
from tests.reader import reader, shape

DEVICES = {"onnxruntime": "pixel-8", "coreml": "iphone-15-pro"}
PER_TASK = 3
SEED, ATTENTION, IMAGES = 1, 4.0, 16.0  # random weights, and by how much they are larger: then answers differ


def workspace(path: Path, maps: Any = None, **given: Any) -> Workspace:
    path.mkdir(parents=True)
    return Workspace(path, path.parent / f"{path.name}-scratch", maps=maps, given=given)


@dataclass
class Answering:
    """The model, and questions to which its own answers are right, under `path`."""

    path: Path
    checkpoint: Checkpoint
    baseline: Baseline

    @classmethod
    def of(cls, path: Path) -> "Answering":
        reader(path / "files", seed=SEED, size=shape(tie_word_embeddings=False))
        file = path / "files/model.safetensors"
        weights = load_file(file)
        for name in weights:
            if ".self_attn." in name and name.endswith("proj.weight"):
                weights[name] *= ATTENTION
            if name.startswith("projector.2"):
                weights[name] *= IMAGES
        save_file(weights, file)
        settings = ModelConfig(str(path / "files"), None, None, None, None, None)
        checkpoint = load(settings, workspace(path / "load"))
        drawn = asked(checkpoint, group("questions", "default", per_task=PER_TASK), path / "drawn")
        folder, lines = path / "own", []
        folder.mkdir()
        answers = read_answers(drawn.path / "answers.jsonl")
        for number, (question, answer) in enumerate(zip(read_asked(drawn.path), answers, strict=True)):
            if answer.answer.strip():
                Image.fromarray(question.image).save(folder / f"{number}.png")
                lines.append(
                    {
                        "image": f"{number}.png",
                        "question": answer.question,
                        "answer": answer.answer,
                        "task": "words" if number % 2 else "letters",
                    }
                )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "questions.jsonl").write_text(text, encoding="utf-8")
        config = QuestionsConfig(str(folder), None, 1, {"words": "exact", "letters": "cer"})
        return cls(path, checkpoint, asked(checkpoint, config, path / "baseline"))

    def quantized(self, name: str, **changes: Any) -> QuantizedModel:
        return quantize(self.checkpoint, group("quantize", name, **changes), workspace(self.path / f"quantize-{name}"))

    def device_model(self, runtime: str, model: QuantizedModel, name: str) -> DeviceModel:
        config, device = group("convert", "default"), group("device", DEVICES[runtime])
        return convert(model, config, device, workspace(self.path / f"convert-{runtime}-{name}"))

    def evaluation(
        self, model: QuantizedModel, device_model: DeviceModel, path: Path, processes: int = 0, **changes: Any
    ) -> Evaluation:
        """What stage evaluate finds, with the calls that it maps in as many processes; 0: in this one."""
        config = group("validate", "default", **changes)
        given: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "model": model,
            "device_model": device_model,
            "baseline": self.baseline,
            "config": config,
        }
        work = workspace(path, Processes(processes, given) if processes else None, **given)
        return evaluate(self.checkpoint, model, device_model, config, work, baseline=self.baseline)


def asked(checkpoint: Checkpoint, config: QuestionsConfig, path: Path) -> Baseline:
    return baseline(checkpoint, config, workspace(path, checkpoint=checkpoint, config=config))


@dataclass
class Processes:
    """Maps of a workspace: each item in one of `count` new processes, the last results first."""

    count: int
    given: dict[str, Any]

    def map(
        self, function: str, items: Sequence[Any], folders: bool, cpus: int, memory_mib: int | None
    ) -> Iterator[tuple[int, Any]]:
        assert not folders
        with ProcessPoolExecutor(self.count, mp_context=get_context("spawn")) as pool:
            running = [pool.submit(_called, function, item, self.given) for item in items]
            for index in reversed(range(len(items))):
                yield index, json.loads(running[index].result())


def _called(function: str, item: Any, given: dict[str, Any]) -> str:
    module, _, name = function.rpartition(".")
    return json.dumps(getattr(import_module(module), name)(item, **given))


def files(artifact: Artifact) -> dict[str, bytes]:
    """{path: contents} of all that it holds."""
    return {
        path.relative_to(artifact.path).as_posix(): path.read_bytes()
        for path in sorted(artifact.path.rglob("*"))
        if path.is_file()
    }
