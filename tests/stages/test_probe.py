"""probe: what torch itself would see, on the images that were asked for; and what it says of unsound weights."""

import json
import struct
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.errors import StageError
from stages.artifacts import Probe, QuantizedModel
from stages.data.image import preprocess
from stages.lowering.capture import capture_decoder, capture_encoder
from stages.models.qwen2 import MaskedContext
from stages.probe import probe
from stages.quantizers.store import QuantizedStore
from stages.tensorfile import TensorReader
from tests.conf import group
from tests.rounded import rounded
from tests.tiny import workspace
from tests.toy import PREPROCESSING, toy_checkpoint

TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> QuantizedModel:
    path: Path = tmp_path_factory.mktemp("toy")
    return rounded(toy_checkpoint(path / "checkpoint", tied=True), path / "quantized")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Three images, of which the names say the order, and a file that is none."""
    folder: Path = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for name in ("c.png", "a.PNG", "b.jpg"):
        Image.fromarray(random.integers(0, 255, (40, 60, 3), np.uint8)).save(folder / name)
    (folder / "0.txt").write_text("no image")
    return folder


def probed(model: QuantizedModel, path: Path, **changes) -> Probe:
    return probe(model, group("probe", "default", **{"tokens": TOKENS, **changes}), workspace(path / "probe"))


def layers_of(program) -> dict[str, str]:
    """{node of a product or a convolution: the module whose weight it takes}."""
    names = program.graph_signature.inputs_to_parameters
    found = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) in ("aten.linear.default", "aten.conv2d.default"):
            found[node.name] = names[node.args[1].name].removesuffix(".weight")
    return found


def test_ranges_are_what_hooks_on_torchs_modules_see(model, photographs, tmp_path):
    made = probed(model, tmp_path, folder=str(photographs), images=2)
    values, eager = TensorReader(made.values), model.model()
    seen: dict[str, float] = defaultdict(float)
    for name, module in eager.named_modules():

        def note(module, inputs, output, name=name):
            seen[name] = max(seen[name], float(output.abs().max()))

        module.register_forward_hook(note)
    ids, count = torch.from_numpy(values.array("ids").astype(np.int64))[None], len(values.array("ids"))
    with torch.no_grad():
        images = [preprocess(photographs / name, PREPROCESSING) for name in ("a.PNG", "b.jpg")]
        features = [eager.encode(torch.from_numpy(image))[0] for image in images]
        rows = torch.zeros(1, count, features[0].shape[1])
        rows[ids == model.config().image_token_id] = features[0]
        context = MaskedContext(torch.arange(count), torch.ones(count, count).tril().bool(), model.config().text)
        hidden = eager.text.hidden(eager.embed(ids, rows), context)[0]
    np.testing.assert_array_equal(values.array("pixels"), images[0])
    np.testing.assert_allclose(values.array("features"), features[0].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values.array("hidden"), hidden.numpy(), rtol=1e-4, atol=1e-4)
    graphs = {
        "encoder": capture_encoder(model.config()),
        "decoder": capture_decoder(model.config(), count, count, head=False),
    }
    for graph, program in graphs.items():
        layers = layers_of(program)
        assert len(layers) > 10
        for node, module in layers.items():
            assert made.ranges()[graph][node] == pytest.approx(seen[module], rel=1e-4), module
    assert made.prompt() == count - TOKENS


def test_it_draws_images_and_text_by_the_seed(model, tmp_path):
    first, again, other = (
        probed(model, tmp_path / name, seed=seed, images=1) for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    for file in ("probe.safetensors", "ranges.json", "probe.json"):
        assert (first.path / file).read_bytes() == (again.path / file).read_bytes()
    assert first.ranges() != other.ranges()
    assert not np.array_equal(TensorReader(first.values).array("ids"), TensorReader(other.values).array("ids"))


def test_a_folder_without_images_is_refused(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=r"probe\.folder: empty holds no image") as error:
        probed(model, tmp_path, folder=str(tmp_path / "empty"))
    assert ".png" in error.value.hint


@pytest.mark.parametrize(
    ("tensor", "line"),
    [
        ("text.layers.1.mlp.gate_proj.weight.scales", "stages/models/qwen2.py:[0-9]+ .*gate_proj"),
        ("text.layers.0.self_attn.q_proj.bias", "stages/models/qwen2.py:[0-9]+ "),
        ("vision.patch_embed.0.weight", "stages/models/fastvit.py:[0-9]+ "),
        ("projector.2.bias", "stages/models/vlm.py:[0-9]+ .*projector"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")  # numpy says so of infinity times 0
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_by_their_line(tensor, line, value, model, tmp_path):
    broken = QuantizedModel(tmp_path / "broken")
    broken.path.mkdir()
    for file in model.path.iterdir():
        (broken.path / file.name).write_bytes(file.read_bytes())
    weights = broken.path / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    start, _ = json.loads(content[8 : 8 + length])[tensor]["data_offsets"]
    content[8 + length + start : 10 + length + start] = np.float16(value).tobytes()
    weights.write_bytes(content)
    with pytest.raises(StageError, match=f"{line}.*not finite"):
        probed(broken, tmp_path, images=1)


def test_it_holds_no_more_than_one_matrix(model, tmp_path, monkeypatch):
    import weakref

    alive: list[str] = []
    most = 0
    dense = QuantizedStore.dense

    def counted(store: QuantizedStore, name: str) -> np.ndarray:
        nonlocal most
        array = dense(store, name)
        if array.ndim > 1:
            alive.append(name)
            weakref.finalize(array, alive.remove, name)
            most = max(most, len(alive))
        return array

    monkeypatch.setattr(QuantizedStore, "dense", counted)
    probed(model, tmp_path, images=1)
    assert most == 1 and not alive
