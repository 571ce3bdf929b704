"""Core ML itself, on macOS, behind the interface of the reference executor.

Thin on purpose: Core ML runs on a Mac alone, so that nothing here beyond the refusal elsewhere has been tested. It uses
coremltools' MLModel.predict and MLComputePlan as coremltools 9 documents them.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import StageError, suggestion

COMPUTE_UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "cpu_gpu": "CPU_AND_GPU", "cpu_ne": "CPU_AND_NE"}


class CoreMLModel:
    """An .mlpackage in Core ML. compute_units: all, cpu, cpu_gpu or cpu_ne (the Neural Engine).

    Raises StageError off macOS, and for a package that Core ML does not load.
    """

    def __init__(self, path: Path | str, function_name: str | None = None, *, compute_units: str = "all"):
        if sys.platform != "darwin":
            raise StageError(
                f"Core ML runs on macOS only, and this is {sys.platform}",
                hint="Take the reference executor, which runs anywhere: --backend reference.",
            )
        if compute_units not in COMPUTE_UNITS:
            raise StageError(
                f"compute units '{compute_units}'", hint=suggestion(compute_units, COMPUTE_UNITS, "compute units")
            )
        import coremltools

        self._units = getattr(coremltools.ComputeUnit, COMPUTE_UNITS[compute_units])
        self._function = function_name
        try:
            self._model = coremltools.models.MLModel(str(path), compute_units=self._units, function_name=function_name)
        except Exception as cause:  # coremltools passes on what Core ML says, in several classes
            raise StageError(f"Core ML cannot load {path}: {cause}") from cause

    def make_state(self) -> Any:
        """Zeros for every state."""
        return self._model.make_state()

    def predict(self, data: Mapping[str, Any], state: Any = None) -> dict[str, Any]:
        """data: name -> array or PIL image; state: from make_state, changed in place. Returns the same by output."""
        result: dict[str, Any] = self._model.predict(dict(data), state=state)
        return result

    def placement(self) -> list[dict[str, Any]]:
        """For each operation where Core ML would run it: operator, output, device, and its share of the whole cost."""
        from coremltools.models.compute_plan import MLComputePlan

        plan = MLComputePlan.load_from_path(self._model.get_compiled_model_path(), compute_units=self._units)
        functions = plan.model_structure.program.functions
        rows = []
        for operation in functions[self._function or "main"].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            if usage is not None:
                rows.append(
                    {
                        "operator": operation.operator_name,
                        "output": operation.outputs[0].name if operation.outputs else "",
                        "device": type(usage.preferred_compute_device).__name__,
                        "cost": cost.weight if cost is not None else 0.0,
                    }
                )
        return rows
