"""Runs Core ML's ML programs anywhere: reads an .mlpackage and executes it with torch, in float16 as it declares.

    from stages.runtimes.coreml_reference import MLProgram

    program = MLProgram("decoder.mlpackage")
    decode = program.function("decode")
    state = decode.new_state()
    logits = decode.predict({"input_ids": ids, "image_features": features, "position": position}, state)["logits"]

It checks conversion and compression. It does not imitate the arithmetic of any one Apple chip.
"""

from stages.runtimes.coreml_reference.features import Feature
from stages.runtimes.coreml_reference.operators import OPERATORS, Call, Kernel, operator
from stages.runtimes.coreml_reference.package import ProgramError, UnknownOperatorError
from stages.runtimes.coreml_reference.program import Function, Interface, MLProgram, State
from stages.runtimes.coreml_reference.session import CoreMLGraph, CoreMLSession

__all__ = [
    "OPERATORS",
    "Call",
    "CoreMLGraph",
    "CoreMLSession",
    "Feature",
    "Function",
    "Interface",
    "Kernel",
    "MLProgram",
    "ProgramError",
    "State",
    "UnknownOperatorError",
    "operator",
]
