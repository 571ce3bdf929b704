"""The types of every group in conf/. conf/ holds the values; nothing here has a default.

Read in the command line's start-up: only dataclasses and enum may be imported here.
"""

from stages.schema.devices import (
    Budgets,
    ConvertConfig,
    DeviceProfile,
    FileFormat,
    Hardware,
    Overflow,
    Prepacking,
    Runtime,
)
from stages.schema.models import (
    DistillConfig,
    ModelConfig,
    TrainConfig,
)
from stages.schema.quantizing import (
    Budget,
    CalibrateConfig,
    Candidate,
    Draw,
    Format,
    Importance,
    LayerOverride,
    Measure,
    Method,
    QuantizeConfig,
    SensitivityConfig,
)
from stages.schema.validating import (
    Gate,
    PackageConfig,
    ProbeConfig,
    QuestionsConfig,
    ValidateConfig,
    ValidationKind,
)

__all__ = [
    "SCHEMAS",
    "Budget",
    "Budgets",
    "CalibrateConfig",
    "Candidate",
    "ConvertConfig",
    "DeviceProfile",
    "DistillConfig",
    "Draw",
    "FileFormat",
    "Format",
    "Gate",
    "Hardware",
    "Importance",
    "LayerOverride",
    "Measure",
    "Method",
    "ModelConfig",
    "Overflow",
    "PackageConfig",
    "Prepacking",
    "ProbeConfig",
    "QuantizeConfig",
    "QuestionsConfig",
    "Runtime",
    "SensitivityConfig",
    "TrainConfig",
    "ValidateConfig",
    "ValidationKind",
]

SCHEMAS: dict[str, type] = {
    "model": ModelConfig,
    "calibrate": CalibrateConfig,
    "sensitivity": SensitivityConfig,
    "quantize": QuantizeConfig,
    "device": DeviceProfile,
    "questions": QuestionsConfig,
    "convert": ConvertConfig,
    "probe": ProbeConfig,
    "validate": ValidateConfig,
    "package": PackageConfig,
    "train": TrainConfig,
    "distill": DistillConfig,
    "student": ModelConfig,
}
