"""What can be refused before anything runs. Called at plan time, so only light imports.

Each check is called as check(config, device) with the stage's own slice of the configuration and, for a stage that is
per device, the device; it raises ConfigError.
"""

from stages.checks.deployment import computes_in_float16, probe, sizes
from stages.checks.packaging import package
from stages.checks.searching import recovery, search, searches, shortlist, supernet
from stages.checks.training import distillation, training
from stages.checks.validating import asks_questions, compares_numbers, questions, validation
from stages.checks.weights import allocates_for, calibration, sensitivity, uses_statistics, weight_formats

__all__ = [
    "allocates_for",
    "asks_questions",
    "calibration",
    "compares_numbers",
    "computes_in_float16",
    "distillation",
    "package",
    "probe",
    "questions",
    "recovery",
    "search",
    "searches",
    "sensitivity",
    "shortlist",
    "sizes",
    "supernet",
    "training",
    "uses_statistics",
    "validation",
    "weight_formats",
]
