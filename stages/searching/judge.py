"""The score of a subnet: how many questions it answers right, teacher-forced, without being extracted."""

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.distillation.source import ProceduralQuestions
from stages.elastic.space import Space
from stages.elastic.view import Elastic
from stages.models.vlm import VisionLanguageModel
from stages.schema.search import SearchConfig
from stages.search_artifacts import Supernet
from stages.searching.trials import Score

BATCH = 16  # images
FIRST = 4  # a first look is at one of so many parts of the questions


class Questions:
    """Questions about `images` images, drawn by `seed` from the training split: words of the same kind as those that
    the model has learned, in scenes that it has not."""

    def __init__(self, model: Checkpoint | Supernet, images: int, seed: int):
        source = ProceduralQuestions(model, seed=seed, batch=BATCH, workers=0)
        self.source = source
        self.batches = list(source.batches(0, -(-images // BATCH)))

    @torch.inference_mode()
    def right(self, model: VisionLanguageModel, batch: Any) -> tuple[int, int, float, int]:
        """(answers right, answers, summed cross entropy, tokens) of one batch."""
        logits, labels = self.source.outputs(model, batch).logits, self.source.targets(batch).labels
        wanted = batch.answers[:, :, 1:]
        hit = torch.ones_like(wanted)
        hit[wanted] = logits.argmax(-1) == labels
        asked = wanted.any(-1)
        loss = float(F.cross_entropy(logits, labels, reduction="sum"))
        return int(hit.all(-1)[asked].sum()), int(asked.sum()), loss, len(labels)


@dataclass
class _Tally:
    right: int = 0
    asked: int = 0
    loss: float = 0.0
    tokens: int = 0

    def add(self, right: int, asked: int, loss: float, tokens: int) -> None:
        self.right, self.asked = self.right + right, self.asked + asked
        self.loss, self.tokens = self.loss + loss, self.tokens + tokens

    def score(self, whole: bool) -> Score:
        return Score(self.right / self.asked, self.loss / self.tokens, self.asked, whole)


def score_model(model: VisionLanguageModel, questions: Questions) -> Score:
    """Of a plain model, all questions."""
    tally = _Tally()
    for batch in questions.batches:
        tally.add(*questions.right(model, batch))
    return tally.score(True)


def score_subnet(supernet: Supernet, item: dict[str, Any], config: SearchConfig, work: Workspace) -> dict[str, Any]:
    """Scores of item["architecture"], as the fields of a Score: "look", at the first questions, and "whole", at all of
    them; null where the look's accuracy is below item["bar"] (null: none). What is opened is kept for the next call."""
    torch.set_num_threads(1)
    elastic, space, questions = _opened(supernet.path, config.images, config.seed)
    model = space.configured(item["architecture"])
    first, tally, look = max(1, len(questions.batches) // FIRST), _Tally(), None
    for number, batch in enumerate(questions.batches, start=1):
        tally.add(*elastic.answers(model, partial(questions.right, batch=batch)))
        if number == first:
            look = tally.score(False)
            if item["bar"] is not None and look.accuracy < item["bar"]:
                return {"look": vars(look), "whole": None}
    assert look is not None
    return {"look": vars(look), "whole": vars(tally.score(True))}


@lru_cache(maxsize=1)
def _opened(path: Path, images: int, seed: int) -> tuple[Elastic, Space, Questions]:
    supernet = Supernet(path)
    return supernet.elastic(), supernet.space(), Questions(supernet, images, seed)
