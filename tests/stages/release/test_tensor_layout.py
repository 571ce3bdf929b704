"""Where tensors lie in the files of a bundle, and that a delta finds one which has moved."""

import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from stages.lowering.coreml.blob import BlobWriter
from stages.release.deltas.blob_names import blob_names
from stages.release.deltas.delta import make_delta
from stages.release.deltas.tensor_layout import Element, Segment, segments, whole

DATA = "decoder.onnx.data"
WEIGHTS = "m.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


def onnx_bundle(folder: Path, order: list[str], size: int = 4096, changed: int = 0) -> Path:
    """A graph of two multiplications by int4 codes, whose external data lies in the order given, with a gap of 32."""
    folder.mkdir()
    tensors, nodes, data = [], [], bytearray()
    for name in order:
        values = random.Random(name).randbytes(size)
        if changed:
            values = values[:100] + bytes([values[100] ^ changed]) + values[101:]
        codes, scales = TensorProto(), TensorProto()
        for tensor, kind, length in ((codes, TensorProto.UINT8, size - 256), (scales, TensorProto.FLOAT16, 256)):
            tensor.name = f"{name}.{'codes' if tensor is codes else 'scales'}"
            tensor.data_type, tensor.data_location = kind, TensorProto.EXTERNAL
            for key, value in (("location", DATA), ("offset", len(data)), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            data += values[:length] if tensor is codes else values[-length:]
            tensors.append(tensor)
        data += bytes(32)
        nodes.append(helper.make_node("MatMulNBits", ["x", codes.name, scales.name], [name], bits=4, block_size=32))
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    onnx.save_model(helper.make_model(graph), folder / "decoder.onnx")
    (folder / DATA).write_bytes(data)
    return folder


def test_external_data_has_the_graph_s_tensors(tmp_path):
    folder = onnx_bundle(tmp_path / "a", ["q", "k"])
    assert segments(folder / DATA, DATA, folder) == [
        Segment("q.codes", 0, 3840, Element.BITS_4),
        Segment("q.scales", 3840, 256, Element.BITS_16),
        Segment("before k.codes", 4096, 32, Element.OPAQUE),
        Segment("k.codes", 4128, 3840, Element.BITS_4),
        Segment("k.scales", 7968, 256, Element.BITS_16),
        Segment("end", 8224, 32, Element.OPAQUE),
    ]


@pytest.mark.parametrize("graph", [b"", b"no protobuf", None])
def test_data_whose_graph_cannot_be_read_is_opaque(tmp_path, graph):
    folder = onnx_bundle(tmp_path / "a", ["q"])
    (folder / "decoder.onnx").unlink() if graph is None else (folder / "decoder.onnx").write_bytes(graph)
    assert segments(folder / DATA, DATA, folder) == [Segment("all", 0, 4128, Element.OPAQUE)]
    assert segments(folder / DATA, DATA, None) == [Segment("all", 0, 4128, Element.OPAQUE)]


def test_a_tensor_that_moved_is_found_by_its_name(tmp_path):
    """Other tensors before it: without the graphs nothing would be alike."""
    old = onnx_bundle(tmp_path / "old", ["q", "k", "v"], 200_000)
    new = onnx_bundle(tmp_path / "new", ["v", "extra", "q", "k"], 200_000, changed=1)
    size = make_delta(old / DATA, new / DATA, tmp_path / "delta", DATA, old, new)
    assert size is not None and size < 201_000 < 0.3 * (new / DATA).stat().st_size  # one tensor is new
    aside = shutil.copy(new / DATA, tmp_path / "aside")  # the file itself may lie anywhere
    assert make_delta(old / DATA, Path(aside), tmp_path / "again", DATA, old, new) == size


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def operation(name: str, **offsets: int) -> bytes:
    """A constant of a program; each operand lies in weight.bin at its offset."""
    values = [
        field(
            5, field(1, key.encode()) + field(2, field(5, field(1, b"@model_path/weights/weight.bin") + field(2, at)))
        )
        for key, at in offsets.items()
    ]
    return field(3, field(1, b"const") + field(3, field(1, name.encode())) + b"".join(values))


def coreml_bundle(folder: Path, order: list[str]) -> dict[str, tuple[int, int]]:
    """Codes and scales of each layer; returns where they lie."""
    path = folder / WEIGHTS
    path.parent.mkdir(parents=True)
    places, operations = {}, b""
    with BlobWriter(path) as blobs:
        for name in order:
            rng = np.random.default_rng(list(name.encode()))
            codes = blobs.add("uint4", (100, 7), rng.integers(0, 256, 350, dtype=np.uint8))
            scales = blobs.add("fp16", (100,), rng.random(100).astype(np.float16))
            operations += operation(name, data=codes, scale=scales)
            places |= {f"{name}.data": (codes + 64, 350), f"{name}.scale": (scales + 64, 200)}
    function = field(1, b"main") + field(2, field(3, field(1, b"CoreML7") + field(2, operations)))
    (path.parent.parent / "model.mlmodel").write_bytes(field(1, 9) + field(502, field(1, 1) + field(2, function)))
    return places


def test_weight_bin_has_the_program_s_names(tmp_path):
    places = coreml_bundle(tmp_path, ["q", "k"])
    found = segments(tmp_path / WEIGHTS, WEIGHTS, tmp_path)
    named = {each.name: (each.offset, each.length) for each in found if each.element is not Element.OPAQUE}
    assert named == places
    for end, element in ((".data", Element.BITS_4), (".scale", Element.BITS_16)):
        assert {each.element for each in found if each.name in named and each.name.endswith(end)} == {element}
    assert [each.offset for each in found[1:]] == [each.offset + each.length for each in found[:-1]]


def test_without_a_program_names_are_places(tmp_path):
    coreml_bundle(tmp_path, ["q"])
    names = [each.name for each in segments(tmp_path / WEIGHTS, WEIGHTS, None)]
    assert names == ["before 11 at 0", "11 at 0", "before 1 at 1", "1 at 1"]


def test_a_damaged_program_has_no_names(tmp_path):
    coreml_bundle(tmp_path, ["q", "k"])
    path = (tmp_path / WEIGHTS).parent.parent / "model.mlmodel"
    sound = path.read_bytes()
    assert blob_names(path)
    for length in range(len(sound)):
        path.write_bytes(sound[:length] + b"\xff")
        assert blob_names(path) == {}
        assert len(segments(tmp_path / WEIGHTS, WEIGHTS, tmp_path)) == 8


def test_safetensors_and_their_header(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((3, 5), np.float16), "b": np.zeros(7, np.int8), "c": np.zeros(2, np.float32)}, path)
    found = {each.name: (each.length, each.element) for each in segments(path, path.name, None)}
    assert found.pop("before c" if "before c" in found else next(iter(found)))[1] is Element.OPAQUE
    assert found == {"a": (30, Element.BITS_16), "b": (7, Element.BITS_8), "c": (8, Element.BITS_32)}
    path.write_bytes(path.read_bytes()[:40])
    assert segments(path, path.name, None) == [Segment("all", 0, 40, Element.OPAQUE)]


def test_tensors_that_overlap_or_leave_the_file_are_left_out():
    tensors = [
        Segment(name, place, length, Element.BITS_8)
        for name, place, length in (("a", 0, 10), ("over a", 5, 10), ("b", 12, 8), ("out", 15, 100), ("empty", 11, 0))
    ]
    assert [(each.name, each.offset, each.length) for each in whole(tensors, 25)] == [
        ("a", 0, 10),
        ("before b", 10, 2),
        ("b", 12, 8),
        ("end", 20, 5),
    ]
