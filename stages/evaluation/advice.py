"""What would help where a gate fails, with figures: measured in torch where answers are at fault, else counted."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.artifacts import Evaluation, QuantizedModel
from stages.evaluation.alternatives import PARTS
from stages.evaluation.names import OVERALL, TASK_METRICS, TEXT_METRICS
from stages.schema import DeviceProfile

FEW = 30  # questions: of fewer, one answer that changes decides over a task
_SAID = 3  # alternatives that are named
_MIB = 2**20
_OF_ANSWERS = (*TASK_METRICS, *TEXT_METRICS, "fidelity.kl", "fidelity.kl_high", "fidelity.agreement")
_CONVERSION = (
    "the files compute other numbers than torch does with the same weights, so the fault is in the conversion or the "
    "runtime, not in quantization; parity.features_error tells of the tower, parity.error of the decoder"
)


def advise(
    gates: Sequence[dict[str, Any]],
    metrics: Mapping[str, Any],
    evaluation: Evaluation,
    model: QuantizedModel,
    device: DeviceProfile,
) -> list[dict[str, Any]]:
    """The gates, each that failed with "help": sentences, the best first. What is advised, the device can hold."""
    failed = [gate for gate in gates if not gate["passed"]]
    converted = any(gate["metric"].startswith("parity.") for gate in failed)
    found = []
    for gate in gates:
        help = list[str]()
        if not gate["passed"]:
            of_answers = gate["metric"] in _OF_ANSWERS
            help = _of_answers(gate, metrics, evaluation, device) if of_answers else []
            help = [_CONVERSION] if of_answers and converted else help or _said(gate, metrics, evaluation, model)
        found.append({**gate, "help": help} if help else dict(gate))
    return found


def _of_answers(
    gate: Mapping[str, Any], metrics: Mapping[str, Any], evaluation: Evaluation, device: DeviceProfile
) -> list[str]:
    own = metrics.get("overall", {}) if gate["task"] in (None, OVERALL) else metrics["tasks"].get(gate["task"], {})
    if own.get("fp32") == 0:
        return [f"the float model scores 0 on {gate['task']}, so there is nothing to keep: ask it what it has learned"]
    help = []
    if own.get("n", FEW) < FEW:
        share = 100 / own["n"]
        help.append(
            f"{own['n']} questions are few for this gate: one answer that changes is {share:.2g} points; ask more"
        )
    if (evaluation.path / "alternatives.json").is_file():
        measured = evaluation.read_json("alternatives.json")
        held = [part for part in measured["parts"] if part["format"] in device.weight_formats]
        help += [
            f"{part['words']} in {part['kind']}: {part['points']:+.1f} points of exact answers on "
            f"{measured['questions']} questions, divergence {part['divergence']:+.2g}, for {part['mib']:.2g} MiB "
            f"({part['setting']})"
            for part in held[:_SAID]
        ]
    return help or ["quantize.bits=8, or quantize=auto with a larger quantize.budget, keeps more of the answers"]


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
    if metric == "fidelity.floats":
        return ["norms, biases or other tensors that stay float are not the checkpoint's: compare what quantize wrote"]
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
        words = next((part[0] for part in PARTS if part[1] in name), "the rest")
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
    help = ["search=nsga2 looks for a smaller model within the device's budgets"]
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
