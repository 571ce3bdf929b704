"""What more bits for one part of a model would gain, measured in torch, and cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint, QuantizedModel
from stages.data.example import Example
from stages.quantizers.choices import weight_format
from stages.quantizers.layers import quantizable_layers, spatial_layers
from stages.quantizers.replaced import ReplacedModel

QUESTIONS = 240  # at most, which the alternatives are measured on
_NOTICED = 0.1  # of the divergence: what takes less of it away, and mends no answer, is no help
_MIB = 2**20
PARTS = (  # words, which weights, and the key that says so: the first that fits a weight
    ("the output head", "text.lm_head", "quantize.head={bits}"),
    ("the embeddings", "text.embed_tokens", "quantize.embeddings={bits}"),
    (
        "the decoder's attention",
        ".self_attn.",
        'quantize.overrides=[{{pattern: "*.self_attn.*", bits: {bits}, {rest}}}]',
    ),
    ("the decoder's feed-forward", ".mlp.", 'quantize.overrides=[{{pattern: "*.mlp.*", bits: {bits}, {rest}}}]'),
    ("the projector", "projector.", 'quantize.overrides=[{{pattern: "projector.*", bits: {bits}, {rest}}}]'),
    ("the tower's pointwise layers", "vision.", "quantize.convolutions={bits}"),
)
_SPATIAL = ("the tower's spatial convolutions", "", "quantize.spatial={bits}")


@dataclass(frozen=True)
class Part:
    """Weights that one key of the configuration concerns. sizes: their bytes now, and with `bits` (0: float16)."""

    words: str
    setting: str
    names: tuple[str, ...]
    bits: int
    size: int
    larger: int

    @property
    def kind(self) -> str:
        return f"int{self.bits}" if self.bits else "float16"


def alternatives(
    checkpoint: Checkpoint, model: QuantizedModel, questions: Sequence[Example], work: Workspace
) -> dict[str, Any]:
    """{"questions": how many, "parts": [{"words", "kind", "format", "setting", "points", "divergence", "mib"}]}, the
    best first: what a part in more bits would add to the questions (percent) whose every token is right given those
    before, what to the divergence from the checkpoint, and to the size. What helps nothing is left out.

    The weights of one part are replaced at a time, those of the others are as shipped.
    """
    asked = _spread(questions)
    judge, store = ReplacedModel(checkpoint, asked, batch=32), model.store()
    shipped = {
        name: torch.from_numpy(store.dense(name)) for name in store.names() if store.format(name).format != "float"
    }
    now, found, parts = judge.measured(shipped), list[tuple[float, float, Part]](), parts_of(model)
    with checkpoint.tensors() as tensors:
        for index, part in enumerate(parts):
            work.progress(index, len(parts), "what would help")
            finer = {name: _finer(tensors[name].float(), part.bits) for name in part.names}
            changed = judge.measured({**shipped, **finer})
            found.append((changed.accuracy - now.accuracy, now.kl - changed.kl, part))
    better = [each for each in found if each[0] * len(asked) >= 0.5 or each[1] > _NOTICED * now.kl]
    better.sort(key=lambda each: (-each[0], -each[1] / max(each[2].larger - each[2].size, 1)))
    return {
        "questions": len(asked),
        "parts": [
            {
                "words": part.words,
                "kind": part.kind,
                "format": weight_format("affine", part.bits),
                "setting": part.setting,
                "points": 100 * points,
                "divergence": -less,
                "mib": (part.larger - part.size) / _MIB,
            }
            for points, less, part in better
        ],
    }


def parts_of(model: QuantizedModel) -> list[Part]:
    """The parts of the model that could have more bits: 8 for what has fewer, then float16."""
    with torch.device("meta"):
        module: Any = model.config().build()
    store, found = model.store(), list[Part]()
    names = [*quantizable_layers(module), *spatial_layers(module)]
    spatial = set(spatial_layers(module))
    for words, _, setting in (*PARTS, _SPATIAL):
        own = [name for name in names if _place(name, spatial) == words]
        forms = {name: store.format(name) for name in own if store.format(name).format != "float"}
        if not forms:
            continue
        bits = 8 if min(form.bits for form in forms.values()) < 8 else 0
        chosen = tuple(name for name, form in forms.items() if not bits or form.bits < bits)
        larger = sum(forms[name].size + 2 * forms[name].rows if bits else 2 * forms[name].size for name in chosen)
        text = setting.format(
            bits=bits, rest="method: rtn, format: affine, group_size: 0, symmetric: true" if bits else "sparsity: 0"
        )
        found.append(Part(words, text, chosen, bits, sum(forms[name].bytes for name in chosen), larger))
    return found


def _place(name: str, spatial: set[str]) -> str:
    if name in spatial:
        return _SPATIAL[0]
    return next((words for words, mark, _ in PARTS if mark in name), "")


def _spread(questions: Sequence[Example]) -> list[Example]:
    """QUESTIONS of them at most, evenly."""
    step = max(1, -(-len(questions) // QUESTIONS))
    return list(questions[::step])


def _finer(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Rounded to int8 with a scale a row, or to float16."""
    if not bits:
        return weight.half().float()
    rows = weight.reshape(len(weight), -1)
    scales = (rows.abs().amax(1, keepdim=True) / 127).half().float().clamp_min(1e-8)
    return ((rows / scales).round().clamp(-127, 127) * scales).reshape(weight.shape)
