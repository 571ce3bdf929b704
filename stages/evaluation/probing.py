"""A model's captured graphs in torch, with its quantized weights made dense one at a time (see lowering/interpret)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from pipelines.errors import StageError
from stages.artifacts import Probe, QuantizedModel
from stages.data.image import preprocess
from stages.data.prompt import PromptFormat
from stages.data.questions import corpus
from stages.data.source import question_source
from stages.evaluation.answers import prompt_format
from stages.lowering.capture import capture_decoder, capture_fixed
from stages.lowering.graph import layer_name, source_line
from stages.lowering.interpret import run_graph
from stages.models.vlm import ModelConfig
from stages.schema import ProbeConfig
from stages.tensorfile import TensorWriter

Report = Callable[[float, float, str], None]
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
QUESTION = "describe the image"


def probe_language(model: QuantizedModel, settings: ProbeConfig, probe: Probe, report: Report) -> None:
    """The tower on settings.images images; the decoder on the first, with a prompt and settings.tokens of text."""
    config, ranges = model.config(), Ranges()
    values: dict[str, NDArray[Any]] = {}
    prompts = prompt_format(model.path, config)
    if config.vision:
        program = capture_fixed(config)["encoder"]
        for index, pixels in enumerate(_images(model, settings)):
            report(index, settings.images + 1, "images")
            inputs = {"image": torch.from_numpy(pixels)}
            (features,) = run_graph(program, _fetch(model), inputs, ranges.of("encoder"))
            if not index:
                values |= {"pixels": pixels, "features": features[0].numpy()}
    report(settings.images, settings.images + 1, "text")
    prompt = prompts.encode(QUESTION)
    ids = np.array([*prompt, *_text(prompts, settings)], np.int32)
    values["ids"] = ids
    values["hidden"] = _decode(model, config, ids, values.get("features"), ranges)
    _write(probe, values, ranges, prompt=len(prompt))


def probe_module(model: QuantizedModel, settings: ProbeConfig, probe: Probe, report: Report) -> None:
    """A user's module on seeded inputs: normal numbers, or small integers where it takes those."""
    config, ranges = model.config(), Ranges()
    assert config.module is not None
    program = capture_fixed(config)["main"]
    random = np.random.Generator(np.random.PCG64(settings.seed))
    values: dict[str, NDArray[Any]] = {}
    for index in range(settings.images):
        report(index, settings.images, "inputs")
        inputs = {
            name: random.standard_normal(spec["shape"], np.float32)
            if spec["dtype"] == "float32"
            else random.integers(0, 2, spec["shape"], np.int32)
            for name, spec in config.module.inputs.items()
        }
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        outputs = run_graph(program, _fetch(model), tensors, ranges.of("main"))
        if not index:
            values |= {f"inputs.{name}": value for name, value in inputs.items()}
            named = zip(config.module.outputs, outputs, strict=True)
            values |= {f"outputs.{name}": np.ascontiguousarray(value.float().numpy()) for name, value in named}
    _write(probe, values, ranges, prompt=0)


class Ranges:
    """The largest absolute value of each operator's result, by graph and node, over all runs."""

    def __init__(self) -> None:
        self.largest: dict[str, dict[str, float]] = {}

    def of(self, graph: str) -> Callable[[Node, torch.Tensor], None]:
        """What observes a run of that graph. It raises StageError where a value is not finite."""
        found = self.largest.setdefault(graph, {})

        def observe(node: Node, value: torch.Tensor) -> None:
            if not value.is_floating_point() or not value.numel():
                return
            low, high = (float(bound) for bound in torch.aminmax(value))
            if low == -np.inf and high < np.inf:  # a mask before a softmax
                value = value[value > -np.inf]
                low, high = (float(bound) for bound in torch.aminmax(value)) if value.numel() else (0.0, 0.0)
            if not np.isfinite([low, high]).all():
                raise StageError(
                    f"{layer_name(node) or 'the model'}, at {source_line(node)}, gives values that are not finite, "
                    "in float32, with the quantized weights",
                    hint="The checkpoint is unsound there, or a scale overflowed: look at that layer's weights.",
                )
            found[node.name] = max(found.get(node.name, 0.0), -low, high)

        return observe


def _fetch(model: QuantizedModel) -> Callable[[str], torch.Tensor]:
    store = model.store()
    return lambda name: torch.from_numpy(store.dense(name))


def _images(model: QuantizedModel, settings: ProbeConfig) -> list[NDArray[np.float32]]:
    preprocessing = model.read_json("preprocessing.json")
    if settings.folder is None:
        examples = question_source().examples("calibration", settings.images, settings.seed)
        return [preprocess(example.image, preprocessing) for example in examples]
    folder = Path(settings.folder)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    if not files:
        raise StageError(f"probe.folder: {folder.name} holds no image", hint=f"Expected {', '.join(IMAGES)}.")
    return [preprocess(path, preprocessing) for path in files[: settings.images]]


def _text(prompts: PromptFormat, settings: ProbeConfig) -> list[int]:
    """settings.tokens ids of plain sentences, in an order drawn by the seed."""
    sentences = corpus()
    random = np.random.Generator(np.random.PCG64(settings.seed))
    ids: list[int] = []
    while len(ids) < settings.tokens:
        sentence = sentences[int(random.integers(len(sentences)))]
        ids += prompts.tokenizer.encode(f" {sentence}.", add_special_tokens=False).ids
    return ids[: settings.tokens]


def _decode(
    model: QuantizedModel, config: ModelConfig, ids: NDArray[np.int32], features: Any, ranges: Ranges
) -> NDArray[np.float32]:
    """The normalised last hidden states (N, D) of the whole sequence in one pass."""
    assert config.text is not None
    text, count = config.text, len(ids)
    cache = (1, text.num_key_value_heads, count, text.head_dim)
    inputs = {"input_ids": torch.from_numpy(ids)[None], "position": torch.zeros(1, dtype=torch.int32)}
    inputs |= {f"caches_{index}": torch.zeros(cache) for index in range(2 * text.num_hidden_layers)}
    if features is not None:
        rows = np.zeros((count, text.hidden_size), np.float32)
        rows[ids == config.image_token_id] = features
        inputs["image_features"] = torch.from_numpy(rows)[None]
    program = capture_decoder(config, count, count, head=False)
    hidden, *_ = run_graph(program, _fetch(model), inputs, ranges.of("decoder"))
    return np.ascontiguousarray(hidden[0].numpy())


def _write(probe: Probe, values: dict[str, NDArray[Any]], ranges: Ranges, *, prompt: int) -> None:
    with TensorWriter(probe.values) as writer:
        for name, value in values.items():
            writer.add(name, value)
    probe.write_json("ranges.json", ranges.largest)
    probe.write_json("probe.json", {"prompt": prompt})
