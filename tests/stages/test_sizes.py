"""What the converted files weigh, against what the bits of their weights say."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from stages.artifacts import QuantizedModel
from stages.data.questions import corpus
from stages.data.tokenizer import train_tokenizer
from stages.train import reference_config
from tests.rounded import rounded
from tests.toy import toy_checkpoint

TOLERANCE = 1.10
CONTEXT, CHUNK = 256, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Callable[[str], QuantizedModel]:
    """A model of that architecture and random weights, in 4 and 8 bits."""

    @cache
    def make(name: str) -> QuantizedModel:
        path = tmp_path_factory.mktemp(name)
        config = reference_config(train_tokenizer(corpus())) if name == "reference" else None
        return rounded(toy_checkpoint(path / "checkpoint", config=config), path / "quantized")

    return make


def bits(model: QuantizedModel, part: str) -> int:
    """Bytes of the encoder's or of the decoder's weights."""
    store = model.store()
    return sum(store.format(name).bytes for name in store.names() if name.startswith("text.") == (part == "decoder"))


def size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())


@pytest.mark.parametrize("name", ["toy", "reference"])
def test_onnx_weighs_what_the_bits_say(model, tmp_path, name):
    from stages.lowering.onnx import lower_onnx

    lower_onnx(model(name).config(), model(name).store(), tmp_path, context=CONTEXT, accuracy_level=1)
    for part in ("encoder", "decoder"):
        promised = bits(model(name), part)
        assert promised <= size([tmp_path / f"{part}.onnx.data"]) <= TOLERANCE * promised
        if name == "reference":
            assert size(list(tmp_path.glob(f"{part}.onnx*"))) <= TOLERANCE * promised


@pytest.mark.parametrize("name", ["toy", "reference"])
def test_core_ml_weighs_what_the_bits_say_and_functions_share_it(model, tmp_path, name):
    from stages.lowering.coreml import lower_coreml

    lower_coreml(model(name).config(), model(name).store(), tmp_path, context=CONTEXT, prefill_chunk=CHUNK)
    head_dim = model(name).config().text.head_dim
    tables = {"encoder": 0, "decoder": 2 * CONTEXT * (head_dim // 2) * 2 + CONTEXT * 4}
    for part in ("encoder", "decoder"):
        promised = bits(model(name), part)
        found = list((tmp_path / f"{part}.mlpackage").rglob("*"))
        weights = size([path for path in found if path.name == "weight.bin"])
        if name == "toy":  # its tables are a quarter of its weights
            assert promised <= weights <= TOLERANCE * (promised + tables[part])
        else:
            assert promised <= weights <= TOLERANCE * promised
            assert size(found) <= {"encoder": 1.10, "decoder": 1.25}[part] * promised  # with two functions' programs
