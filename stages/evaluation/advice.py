"""What would help where a gate fails, with figures: measured in torch where answers are at fault, else counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.workspace import Workspace
from stages.artifacts import Baseline, Checkpoint, Evaluation, QuantizedModel
from stages.data.asked import read_asked
from stages.data.example import Example
from stages.evaluation.names import OVERALL, TASK_METRICS, TEXT_METRICS
from stages.quantizers.layers import quantizable_layers, spatial_layers
from stages.quantizers.replaced import ReplacedModel

QUESTIONS = 240  # of the tasks that failed, at most, which the alternatives are measured on
_SAID = 3  # alternatives that are named
_NOTICED = 0.1  # of the divergence: what takes less of it away, and mends no answer, is no help
_MIB = 2**20
_OF_ANSWERS = (*TASK_METRICS, *TEXT_METRICS, "fidelity.kl", "fidelity.kl_high", "fidelity.agreement")
_PARTS = (  # words, which weights, and the key that says so: the first that fits a weight
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
_CONVERSION = (
    "the files compute other numbers than torch does with the same weights, so the fault is in the conversion or the "
    "runtime, not in quantization; parity.features_error tells of the tower, parity.error of the decoder"
)


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

    @property
    def cost(self) -> str:
        return f"{(self.larger - self.size) / _MIB:.2g} MiB"


def advise(
    gates: Sequence[dict[str, Any]],
    metrics: Mapping[str, Any],
    evaluation: Evaluation,
    checkpoint: Checkpoint,
    model: QuantizedModel,
    baseline: Baseline | None,
    measure: bool,
    work: Workspace,
) -> list[dict[str, Any]]:
    """The gates, each that failed with "help": sentences, the best first.

    measure: whether alternatives are measured where answers are at fault, on the baseline's questions.
    """
    failed = [gate for gate in gates if not gate["passed"]]
    answers = [gate for gate in failed if gate["metric"] in _OF_ANSWERS]
    converted = any(gate["metric"].startswith("parity.") for gate in failed)
    better = [_CONVERSION] if converted else []
    if answers and measure and baseline and not converted:
        better = _measured(answers, checkpoint, model, baseline, work)
    found = []
    for gate in gates:
        help = []
        if gate in answers:
            help = better or [
                "quantize.bits=8, or quantize=auto with a larger quantize.budget, keeps more of the answers"
            ]
        elif not gate["passed"]:
            help = _said(gate, metrics, evaluation, model)
        found.append({**gate, "help": help} if help else dict(gate))
    return found


def _said(
    gate: Mapping[str, Any], metrics: Mapping[str, Any], evaluation: Evaluation, model: QuantizedModel
) -> list[str]:
    metric = gate["metric"]
    if metric in ("size_bytes", "budget.size_mib"):
        return _of_size(gate, metrics, model)
    if metric == "fidelity.scale_error":
        layers = evaluation.read_json("layers.json")
        worst = max(layers, key=lambda name: layers[name]["scale_error"])
        return [f"the worst is {worst}: its scales are off by {layers[worst]['scale_error']:.1%}; look at its codes"]
    if metric.startswith("parity."):
        return [_CONVERSION]
    if metric in ("fidelity.vocabulary", "fidelity.prompts"):
        return ["the shipped tokenizer.json or prompt is not the checkpoint's: compare the two files"]
    if metric == "fidelity.pixels":
        return ["the shipped preprocessing.json prepares images otherwise than the checkpoint's: compare the two files"]
    if gate.get("predicted") or metric.startswith("budget."):
        return _of_speed(gate, metrics)
    return []


def _of_size(gate: Mapping[str, Any], metrics: Mapping[str, Any], model: QuantizedModel) -> list[str]:
    scale = _MIB if gate["metric"] == "budget.size_mib" else 1
    over, bound = metrics["size_bytes"] - gate["bound"] * scale, int(gate["bound"] * scale)
    store = model.store()
    sizes: dict[str, int] = {}
    for name in store.names():
        words = next((part[0] for part in _PARTS if part[1] in name), "the rest")
        words = "the tower" if name.startswith("vision.") else words  # all of it: also what stays float
        sizes[words] = sizes.get(words, 0) + store.format(name).bytes
    parts = sorted(sizes.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{words} {size / _MIB:.2f}" for words, size in parts[:4])
    return [
        f"{over / _MIB:.2f} MiB too large; in MiB, {shares}",
        f"quantize=auto quantize.budget.bytes={int(bound * 0.95)} chooses formats for that size",
        "search=nsga2 finds a smaller model",
    ]


def _of_speed(gate: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    help = ["search=nsga2 finds a smaller model within the device's budgets"]
    name = gate["metric"].replace("budget.", "").replace("predicted.", "")
    found = metrics.get("predicted", {}).get({"memory_mib": "peak_memory_mib"}.get(name, name), {})
    inside = found.get("value", gate["value"])
    if gate["end"] != "value" and (inside >= gate["bound"] if gate["kind"] == "min" else inside <= gate["bound"]):
        help.insert(
            0,
            f"the middle of the predicted interval, {inside:.4g}, passes: a measurement on the device would decide; "
            "validate.predictions=value goes by the middle",
        )
    return help


def _measured(
    gates: Sequence[Mapping[str, Any]],
    checkpoint: Checkpoint,
    model: QuantizedModel,
    baseline: Baseline,
    work: Workspace,
) -> list[str]:
    """What more bits for one part would gain on the questions of the tasks that failed, and cost; the best first."""
    tasks = {gate["task"] for gate in gates}
    every = bool(tasks & {None, OVERALL})
    questions = [example for example in read_asked(baseline.path) if every or example.task in tasks]
    asked = _spread(questions)
    judge = ReplacedModel(checkpoint, asked, batch=32)
    store = model.store()
    shipped = {
        name: torch.from_numpy(store.dense(name)) for name in store.names() if store.format(name).format != "float"
    }
    now = judge.measured(shipped)
    found = []
    parts = parts_of(model)
    with checkpoint.tensors() as tensors:
        for index, part in enumerate(parts):
            work.progress(index, len(parts), "what would help")
            finer = {name: _finer(tensors[name].float(), part.bits) for name in part.names}
            changed = judge.measured({**shipped, **finer})
            found.append((changed.accuracy - now.accuracy, now.kl - changed.kl, part))
    better = [each for each in found if each[0] * len(asked) >= 0.5 or each[1] > _NOTICED * now.kl]
    better.sort(key=lambda each: (-each[0], -each[1] / max(each[2].larger - each[2].size, 1)))
    return [
        f"{part.words} in {part.kind}: {100 * points:+.1f} points on {len(asked)} questions, divergence {-less:+.2g}, "
        f"for {part.cost} ({part.setting})"
        for points, less, part in better[:_SAID]
    ]


def parts_of(model: QuantizedModel) -> list[Part]:
    """The parts of the model that could have more bits: 8 for what has fewer, then float16."""
    with torch.device("meta"):
        module: Any = model.config().build()
    store, found = model.store(), list[Part]()
    names = [*quantizable_layers(module), *spatial_layers(module)]
    spatial = set(spatial_layers(module))
    for words, _, setting in (*_PARTS, _SPATIAL):
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
    return next((words for words, mark, _ in _PARTS if mark in name), "")


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
