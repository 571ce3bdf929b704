"""Saves MIL functions as an .mlpackage whose bytes depend on the functions alone.

coremltools' own `save` puts random identifiers, a date and library builds into it; its protobuf maps have no order.
"""

import json
import uuid
from pathlib import Path
from typing import Any

from coremltools.converters.mil.backend.mil.helper import create_file_value_tensor, types_to_proto_primitive
from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter, MILProtoExporter
from coremltools.converters.mil.mil import Program, Var
from coremltools.proto import Model_pb2

from stages.lowering.coreml.blob import BlobWriter
from stages.lowering.coreml.builder import TARGET, FunctionBuilder
from stages.lowering.coreml.compact import compact
from stages.lowering.coreml.stored import Stored
from stages.lowering.coreml.weights import WeightBank

AUTHOR = "com.apple.CoreML"
_ITEMS = {
    "model.mlmodel": "CoreML Model Specification",
    "weights": "CoreML Model Weights",
}


def save_package(path: Path, builders: list[FunctionBuilder], bank: WeightBank) -> Any:
    """Write the functions (several: a multifunction package, whose default is the first); returns the Model proto.

    The folder must not exist yet. Each builder's `lines` come to know its operations by their names in the package.
    """
    program = Program()
    for builder in builders:
        program.add_function(builder.spec.name, builder.function)
    program.default_function_name = builders[0].spec.name
    program.export_as_multifunction = len(builders) > 1
    program.skip_all_passes = True  # nothing may fold a constexpr into a dense weight
    program._check_early_error_out_for_invalid_program()

    weights = path / "Data" / AUTHOR / "weights"
    weights.mkdir(parents=True)
    with BlobWriter(weights / "weight.bin") as blob:
        spec = _to_proto(program, weights, bank, blob)
    for builder in builders:
        renamed = compact(spec.mlProgram.functions[builder.spec.name], builder.uses.keys())
        builder.lines = {renamed[name]: line for name, line in builder.lines.items() if name in renamed}
    _describe(spec, builders)
    (path / "Data" / AUTHOR / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    (path / "Manifest.json").write_text(_manifest(), encoding="utf-8")
    return spec


def _to_proto(program: Program, weights: Path, bank: WeightBank, blob: BlobWriter) -> Model_pb2.Model:
    """What coremltools' `load` does, with our writer of weights."""
    exported = _Exporter(program, weights, bank, blob).export()
    description = CoreMLProtoExporter(
        program,
        exported,
        None,
        None,
        classifier_config=None,
        convert_to="mlprogram",
        convert_from="milinternal",
        specification_version=int(TARGET),
    )
    return description.export(int(TARGET))


class _Exporter(MILProtoExporter):  # type: ignore[misc]  # coremltools has no types
    """Writes a constant that the bank holds from there, any other from the MIL Builder's value."""

    def __init__(self, program: Program, weights: Path, bank: WeightBank, blob: BlobWriter):
        super().__init__(program, str(weights), int(TARGET))
        self._bank, self._blob = bank, blob

    def create_file_value(self, var: Var) -> Any:
        key = var.op.weight_id or f"{var.op.enclosing_block.name}_{var.name}"
        if key not in self.weight_id_to_file_value:
            stored = self._bank.shared.get(key) or Stored.of(var.val)
            self.weight_id_to_file_value[key] = create_file_value_tensor(
                file_name="@model_path/weights/weight.bin",
                offset=self._blob.add(stored.kind, stored.shape, stored.data()),
                dim=stored.shape,
                data_type=types_to_proto_primitive(var.sym_type.get_primitive()),
            )
        return self.weight_id_to_file_value[key]


def _describe(spec: Model_pb2.Model, builders: list[FunctionBuilder]) -> None:
    """Names are the graph's; the texts beside them come from the functions' specs."""
    multifunction = {function.name: function for function in spec.description.functions}
    spec.description.metadata.shortDescription = " ".join(builder.spec.summary for builder in builders)
    for builder in builders:
        description = multifunction.get(builder.spec.name, spec.description)
        for features, texts in (
            (description.input, builder.spec.inputs),
            (description.output, builder.spec.outputs),
            (description.state, builder.spec.states),
        ):
            for feature in features:
                feature.shortDescription = texts[feature.name][2]


def _manifest() -> str:
    """Manifest.json with identifiers derived from the items' names, where coremltools draws them at random."""
    identifiers = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{AUTHOR}/{name}")).upper() for name in _ITEMS}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[name]: {"author": AUTHOR, "description": text, "name": name, "path": f"{AUTHOR}/{name}"}
            for name, text in _ITEMS.items()
        },
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
    return json.dumps(manifest, indent=4, sort_keys=True) + "\n"
