"""What flows between the stages of a search: artifacts as those of artifacts.py, apart from which no other stage's key
depends on them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts import Artifact, Model

if TYPE_CHECKING:
    from stages.elastic.space import Space
    from stages.elastic.view import Elastic
    from stages.searching.trials import Trial


class Supernet(Model):
    """A model whose subnets share its weights: supernet.safetensors (float32; names as in a checkpoint, sorted by
    importance, and the factors of a low-rank head), space.json (dimensions: what each can be; layers: those of each
    list, the most important first), and the checkpoint's config.json, tokenizer.json and preprocessing.json."""

    @property
    def weights(self) -> Path:
        return self.path / "supernet.safetensors"

    def space(self) -> "Space":
        from stages.elastic.space import Dimension, Space

        values = self.read_json("space.json")["dimensions"]
        return Space(self.config(), tuple(Dimension(name, tuple(each)) for name, each in values))

    def elastic(self) -> "Elastic":
        from safetensors.torch import load_file

        from stages.elastic.view import Elastic

        return Elastic(self.config(), load_file(self.weights), self.read_json("space.json")["layers"])


class Trials(Artifact):
    """What a search has tried: trials.jsonl (one line an architecture), and what came of it: search.json,
    frontier.svg, summary.txt, gates.json (searching/report.py)."""

    def search(self) -> dict[str, Any]:
        return dict(self.read_json("search.json"))

    def trials(self) -> "list[Trial]":
        from stages.searching.trials import read_trials

        return read_trials(self.path / "trials.jsonl")


class Shortlist(Artifact):
    """The architectures that fit a device's budgets best, to be recovered and ranked: shortlist.json."""

    def candidates(self) -> list[dict[str, Any]]:
        return list(self.read_json("shortlist.json")["candidates"])
