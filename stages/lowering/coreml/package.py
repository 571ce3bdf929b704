"""Saves MIL functions as an .mlpackage whose bytes depend on the functions alone.

coremltools' own `save` puts random identifiers, a date and library builds into it; its protobuf maps have no order.
"""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from coremltools.converters.mil.backend.mil.load import load as to_proto
from coremltools.converters.mil.mil import Program
from coremltools.proto import Model_pb2

from stages.lowering.coreml.builder import TARGET, FunctionBuilder
from stages.lowering.coreml.compact import compact
from stages.lowering.coreml.weights import identifier

AUTHOR = "com.apple.CoreML"
_ITEMS = {
    "model.mlmodel": "CoreML Model Specification",
    "weights": "CoreML Model Weights",
}


def save_package(path: Path, builders: list[FunctionBuilder]) -> Any:
    """Write the functions (several: a multifunction package, whose default is the first); returns the Model proto."""
    program = Program()
    for builder in builders:
        program.add_function(builder.spec.name, builder.function)
    program.default_function_name = builders[0].spec.name
    program.export_as_multifunction = len(builders) > 1
    program.skip_all_passes = True  # nothing may fold a constexpr into a dense weight
    program._check_early_error_out_for_invalid_program()

    if path.exists():
        shutil.rmtree(path)
    weights = path / "Data" / AUTHOR / "weights"
    weights.mkdir(parents=True)
    spec = to_proto(
        program,
        weights_dir=str(weights),
        specification_version=int(TARGET),
        convert_to="mlprogram",
        convert_from="milinternal",
    )
    for builder in builders:
        compact(spec.mlProgram.functions[builder.spec.name], set(map(identifier, builder.weights)))
    _describe(spec, builders)
    (path / "Data" / AUTHOR / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    (path / "Manifest.json").write_text(_manifest(), encoding="utf-8")
    return spec


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
