"""What the layouts of others have in common: a Qwen2 decoder, and with it perhaps FastViTHD and a projector."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.errors import CheckpointError
from stages.models.description import check_config, check_preprocessing, check_tokenizer, read_object
from stages.models.fastvit import VisionConfig
from stages.models.layouts.template import prompt_template
from stages.models.layouts.tensors import Contents, Tensors, check_tensors
from stages.models.layouts.text import add_text, shares_head
from stages.models.layouts.tokens import TOKENIZER, read_tokens
from stages.models.layouts.tower import Names, add_tower
from stages.models.layouts.weights import WeightFiles
from stages.models.vlm import ModelConfig

NEW_TOKENS = 256  # of an answer at most, where generation_config.json does not say (as Apple's predict.py)


@dataclass(frozen=True)
class Layout:
    """The names of a layout: of the tower's parts (None: a decoder alone), of the decoder's tensors (`body` before
    them) and its head, of the projector's two linears, and prefixes of what lies beside them unused."""

    tower: Names | None
    body: str
    head: str
    projector: tuple[str, str] = ("", "")
    unused: tuple[str, ...] = ()

    def tensors(self, config: ModelConfig, present: Collection[str], trained: bool = False) -> Tensors:
        """Where each tensor of the model lies. `present`: the names that the checkpoint has, which decide the form of
        each of the tower's blocks; where none do, `trained`."""
        assert config.text is not None
        tensors = Tensors(widened="vision." if config.vision else "\0")
        tensors.unused += self.unused + ((self.head,) if config.text.tie_word_embeddings else ())
        if config.vision and self.tower:
            add_tower(tensors, config.vision, self.tower, present, trained)
            inputs = config.vision.output_width
            for name, source in zip(("projector.0", "projector.2"), self.projector, strict=True):
                tensors.store(f"{name}.weight", f"{source}.weight", (config.text.hidden_size, inputs))
                tensors.store(f"{name}.bias", f"{source}.bias", (config.text.hidden_size,))
                inputs = config.text.hidden_size
        add_text(tensors, config.text, self.body, self.head)
        return tensors

    def contents(
        self,
        path: Path,
        values: dict[str, Any],
        weights: WeightFiles,
        text: dict[str, Any],
        vision: VisionConfig | None = None,
        pixels: dict[str, Any] | None = None,
        image_token: str | None = None,
    ) -> Contents:
        """The checkpoint whose config.json, `values`, lies at path, every file of it checked but for weights' values.

        text: TextConfig's fields; pixels: how images are prepared; image_token: its usual name. Raises CheckpointError.
        """
        folder = path.parent
        sections: dict[str, Any] = {"architecture": "qwen2", "text": text}
        if vision:
            sections = {"architecture": "fastvlm", "text": text, "image_token_id": 0}
            sections["vision"] = json.loads(json.dumps(asdict(vision)))
        config = check_config(sections, path)
        tensors = self.tensors(config, weights.entries)
        hint = "Without an output head of its own, tie_word_embeddings must be true in config.json."
        check_tensors(weights, tensors, {self.head: hint})
        tokens = read_tokens(folder, values, text["vocab_size"], image_token)
        config = replace(config, image_token_id=tokens.image_token_id)
        preprocessing = {
            **(pixels or {}),
            **({"image_token": tokens.image_token} if vision else {}),
            "prompt_template": prompt_template(folder, tokens.image_token),
            "end_token": tokens.end_token,
            "max_new_tokens": _new_tokens(folder),
        }
        check_preprocessing(preprocessing, config, path)
        check_tokenizer(tokens.tokenizer, folder / TOKENIZER, config, preprocessing)
        if text["tie_word_embeddings"] and not shares_head(weights, f"{self.body}embed_tokens.weight", self.head):
            assert config.text is not None
            config = replace(config, text=replace(config.text, tie_word_embeddings=False))
            tensors = self.tensors(config, weights.entries)
            check_tensors(weights, tensors)
        return Contents(config, preprocessing, tokens.text, weights, tensors)


def require(values: dict[str, Any], path: Path, key: str, expected: Any, *, default: Any) -> None:
    """Raise CheckpointError where a key of config.json, `default` if absent, is not what alone can be built."""
    found = values.get(key, default)
    if found != expected:
        raise CheckpointError(
            f"{path}: {key} is {found!r}; only {expected!r} can be built",
            hint="Take the config.json that belongs to the weights, or another checkpoint.",
        )


def _new_tokens(folder: Path) -> int:
    path = folder / "generation_config.json"
    value = read_object(path).get("max_new_tokens") if path.is_file() else None
    return value if type(value) is int else NEW_TOKENS
