"""What flows between the stages: immutable folders, each with a type. Stages speak to each other only through these.

An artifact is made from its folder alone (`Checkpoint(path)`), which costs nothing; contents are read when asked for.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from stages.models.vlm import ModelConfig, VisionLanguageModel
    from stages.quantizers.choices import Choice
    from stages.quantizers.store import QuantizedStore


_MAPPED = 1 << 28  # bytes of weights read before their file is mapped anew


class Artifact:
    """A folder. Two artifacts of a type are equal when their files are."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def write_json(self, name: str, value: Any) -> None:
        """Write value with sorted keys and a fixed layout, so that equal values are equal bytes."""
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (self.path / name).write_text(text + "\n", encoding="utf-8")


class Model(Artifact):
    """What checkpoints and quantized models have beside weights: config.json; of a language model tokenizer.json and
    preprocessing.json."""

    def config(self) -> "ModelConfig":
        from stages.models.vlm import ModelConfig

        return ModelConfig.from_dict(self.read_json("config.json"))

    def preprocessing(self) -> dict[str, Any]:
        return dict(self.read_json("preprocessing.json"))

    def tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.path / "tokenizer.json"))

    def copy_description(self, out: Path) -> None:
        """Copy all that is not weights into folder out."""
        shutil.copyfile(self.path / "config.json", out / "config.json")
        self.copy_preprocessing(out)

    def copy_preprocessing(self, out: Path) -> None:
        """Copy the tokenizer and preprocessing, where there are any, into folder out."""
        for name in ("tokenizer.json", "preprocessing.json"):
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, out / name)


class Checkpoint(Model):
    """A model as trained: model.safetensors (mapped, never copied whole), config.json, tokenizer.json,
    preprocessing.json.

    Tensors are named vision.*, projector.*, text.*; the tower is reparameterised; floats are float16 or float32.
    preprocessing.json: {"image_size", "mean" [3], "std" [3], "aspect": "pad"|"crop"|"stretch", "prompt_template" (with
    {image} and {question}), "image_token", "end_token", "max_new_tokens"}.
    """

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @contextmanager
    def tensors(self) -> Iterator[Mapping[str, "torch.Tensor"]]:
        """The tensors by name, read from the mapped file one at a time, as they are stored."""
        yield _LazyTensors(self.weights)

    def model(self) -> "VisionLanguageModel":
        """The whole model in float32, in evaluation mode. For models that fit in memory."""
        import torch

        with torch.device("meta"):
            model: Any = self.config().build()
        with self.tensors() as tensors:
            state = {name: tensors[name].to(torch.float32) for name in tensors}
        model.load_state_dict(state, assign=True)
        return model.eval()


class _LazyTensors(Mapping[str, Any]):
    """Maps the file anew now and then, so that what was read of it does not stay in memory."""

    def __init__(self, path: Path):
        self._path = path
        self._file, self._read = self._open(), 0
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if self._read > _MAPPED:
            self._file, self._read = self._open(), 0
        tensor = self._file.get_tensor(name)
        self._read += tensor.nbytes
        return tensor

    def _open(self) -> Any:
        from safetensors import safe_open

        return safe_open(self._path, framework="pt")  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Calibration(Artifact):
    """What a seeded calibration set shows of each layer.

    statistics.safetensors: `<weight name>.second_moment` float32, mean of x x^T over tokens, the upper triangle row by
    row (quantizers/statistics.py reads it); `<weight name>.fisher` (the weight's shape) float32, mean squared gradient;
    `<weight name>.range` (2,) float32, least and greatest input. sensitivity.json: {weight name: scalar}.
    """

    @property
    def statistics(self) -> Path:
        return self.path / "statistics.safetensors"


class Sensitivity(Artifact):
    """What each format costs each weight: table.json, see quantizers/sensitivity.py."""

    def table(self) -> dict[str, Any]:
        return dict(self.read_json("table.json"))


class Allocation(Artifact):
    """A format for each weight, under a budget: allocation.json {weight name: fields of its Choice}; what else could
    have been: frontier.json and frontier.svg; and in words why: allocation.md."""

    def choices(self) -> "dict[str, Choice]":
        from stages.quantizers.choices import Choice

        return {name: Choice.from_dict(values) for name, values in self.read_json("allocation.json").items()}


class QuantizedModel(Model):
    """The model as it will be shipped, before any runtime: weights.safetensors and formats.json (quantizers/store.py),
    with the checkpoint's config.json, tokenizer.json and preprocessing.json beside them; method.json (see
    weights_were); where inputs are rounded to static ranges, activations.json."""

    def store(self) -> "QuantizedStore":
        from stages.quantizers.store import QuantizedStore

        return QuantizedStore.open(self.path)

    def model(self) -> "VisionLanguageModel":
        """The dequantized model in float32: what every runtime is compared with."""
        import torch

        store = self.store()
        with torch.device("meta"):
            model: Any = self.config().build()
        state = {name: torch.from_numpy(store.dense(name)) for name in store.names()}
        model.load_state_dict(state, assign=True)
        if ranges := self.activations():
            from stages.quantizers.static_ranges import attach

            attach(model, ranges)
        return model.eval()

    def weights_were(self) -> str:
        """What became codes: the weights of the "checkpoint", those after training ("trained"), or with scales moved
        from one layer into another ("equalized")."""
        known = (self.path / "method.json").is_file()
        return str(self.read_json("method.json")["weights"]) if known else "checkpoint"

    def activations(self) -> dict[str, Any]:
        """{weight: {"bits", "scale", "zero_point"}} of the inputs that are rounded to static ranges; usually none."""
        return dict(self.read_json("activations.json")) if (self.path / "activations.json").is_file() else {}


class Probe(Artifact):
    """What the shipped weights give in torch, in float32. ranges.json: {graph: {node: largest absolute value}}.

    probe.safetensors: of a language model `ids` (N,) int32, of which the first `prompt` (probe.json) are a prompt, and
    `hidden` (N, D), its normalised last hidden states; with a tower `pixels` (1, 3, S, S) and `features` (T, D); of a
    user's module inputs.NAME and outputs.NAME.
    """

    @property
    def values(self) -> Path:
        return self.path / "probe.safetensors"

    def ranges(self) -> dict[str, dict[str, float]]:
        return dict(self.read_json("ranges.json"))

    def prompt(self) -> int:
        return int(self.read_json("probe.json")["prompt"])


class DeviceModel(Artifact):
    """The model in its runtime's format: encoder and decoder (a user's module: main) as .mlpackage or .onnx, and
    model.json (runtime, files, shapes, functions, states), with the checkpoint's tokenizer.json and preprocessing.json.
    """

    def description(self) -> dict[str, Any]:
        return dict(self.read_json("model.json"))


class Baseline(Artifact):
    """Held-out questions and the float model's answers: questions.jsonl and images.safetensors (data/asked.py),
    answers.jsonl (one line a question), and metrics.json (which questions, and each task's scores)."""

    def metrics(self) -> dict[str, Any]:
        return dict(self.read_json("metrics.json"))


class Evaluation(Artifact):
    """What the shipped files do, whatever the device: metrics.json (scores, retention, parity, fidelity, size),
    layers.json (each quantized weight's format, bytes and error); of questions answers.jsonl (one line each), and
    flips.jsonl with images of those whose score changed, and
    proofs.jsonl with some that were answered right."""

    def metrics(self) -> dict[str, Any]:
        return dict(self.read_json("metrics.json"))

    def proofs(self) -> list[dict[str, Any]]:
        """{"task", "image": a file here, "question", "answer"} of some that were answered right."""
        path = self.path / "proofs.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        return [json.loads(line) for line in lines]


class Validation(Artifact):
    """metrics.json: an Evaluation's, with what is predicted for the device, and its gates."""

    def metrics(self) -> dict[str, Any]:
        return dict(self.read_json("metrics.json"))


class Bundle(Artifact):
    """manifest.json and all that a device needs."""

    def manifest(self) -> dict[str, Any]:
        return dict(self.read_json("manifest.json"))
