"""Everybody's weights in the same torch model, on the same held-out questions; figures are kept beside the weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from quantization.subject import checkpoint
from stages.data.example import Questions
from stages.data.source import question_source
from stages.evaluation.answers import Answer, answered, preprocessed, prompt_format
from stages.evaluation.divergence import AnswerDivergence
from stages.evaluation.metrics import compare
from stages.evaluation.names import TASKS
from stages.evaluation.torch_answers import encode_images, generate
from stages.models.vlm import VisionLanguageModel
from stages.schema import ValidateConfig


class Judge:
    """per_task questions of each task, seed 101. Nothing is drawn or computed before it is needed."""

    SEED = 101

    def __init__(self, per_task: int, kept: Path, config: ValidateConfig):
        self.per_task, self.kept, self.config = per_task, kept, config
        self._divergence: AnswerDivergence | None = None
        self._examples: Questions | None = None
        self._reference: list[Answer] | None = None
        self._model = checkpoint().model()
        kept.mkdir(parents=True, exist_ok=True)

    def divergence(self, state: dict[str, torch.Tensor]) -> dict[str, float]:
        """{"kl", "agreement"} of a model with these weights."""

        def measure() -> dict[str, float]:
            if self._divergence is None:
                self._divergence = AnswerDivergence(checkpoint(), self.examples())
            found = self._divergence.of(self._loaded(state))
            return {"kl": found.kl, "agreement": found.agreement}

        return dict(self._remembered("divergence", state, measure))

    def answers(self, state: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Answers generated greedily, against the float model's. {"tasks": {task: what metrics.compare gives},
        "overall": the same of all questions}."""

        def measure() -> dict[str, Any]:
            if self._reference is None:
                self._reference = self._answers(checkpoint().model())
            given = self._answers(self._loaded(state))
            found = compare(self.examples(), given, self._reference, self.config)
            return {"tasks": found["tasks"], "overall": found["overall"]}

        return dict(self._remembered("answers", state, measure))

    @property
    def count(self) -> int:
        return self.per_task * len(TASKS)

    def examples(self) -> Questions:
        if self._examples is None:
            drawn = question_source().by_task(self.per_task, self.SEED)
            self._examples = Questions(drawn, drawn)
        return self._examples

    def _answers(self, model: VisionLanguageModel) -> list[Answer]:
        source = checkpoint()
        prompts = prompt_format(source.path, source.config())
        features = encode_images(model, preprocessed(self.examples(), source.preprocessing()))
        asked = [prompts.encode(example.question) for example in self.examples()]
        said = generate(model, features, asked, end=prompts.end_id, limit=prompts.max_new_tokens)
        return answered(prompts, self.examples(), said)

    def _loaded(self, state: dict[str, torch.Tensor]) -> VisionLanguageModel:
        self._model.load_state_dict(state)
        return self._model

    def _remembered(self, what: str, state: dict[str, torch.Tensor], measure: Any) -> Any:
        """By the weights' digest: equal weights answer equally. Change the judge, and the folder must go."""
        digest = hashlib.sha256(f"{what} {self.per_task} {self.SEED} {self.config}".encode())
        for name, tensor in sorted(state.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        path = self.kept / f"{digest.hexdigest()[:24]}.json"
        if not path.is_file():
            path.write_text(json.dumps(measure()), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))
