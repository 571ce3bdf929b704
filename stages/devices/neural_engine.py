"""What in an ML program may keep it from the Neural Engine, or make it slow or wrong there, said without running it.

    from stages.devices.neural_engine import inspect

    for finding in inspect(Path("decoder.mlpackage"), "A17 Pro"):
        print(finding.risk, finding.source, finding.count)

Apple gives no complete list (coremltools#1780): a finding is a risk, with the public source that it rests on, and never
a verdict; no finding is no promise. The rules are in neural_engine_rules.py.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stages.devices.chips import chip_of
from stages.devices.neural_engine_rules import RULES, View, view_of

Lines = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Finding:
    """A risk. operation: the first that it concerns, by its name in the package; count: how many it concerns.

    line: the line of the model that they came from, "" where that is not known.
    """

    rule: str
    risk: str
    source: str
    package: str
    function: str
    operation: str
    operator: str
    line: str
    count: int = 1

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def inspect(path: Path, chip: str = "") -> list[Finding]:
    """The findings of an .mlpackage. Raises ProgramError for one that cannot be read."""
    from stages.runtimes.coreml_reference.package import Package

    return inspect_program(Package(Path(path)).model, chip, package=Path(path).name)


def inspect_program(model: Any, chip: str = "", *, lines: Lines | None = None, package: str = "") -> list[Finding]:
    """The findings of a Model proto, in the order of the rules, then of the program.

    lines: {function: {operation: line of the model}}. Those of one rule and one line (without lines: one operator) are
    one finding with a count.
    """
    views = [
        view_of(name, function, (lines or {}).get(name, {}))
        for name, function in sorted(model.mlProgram.functions.items())
    ]
    findings: dict[tuple[str, str], Finding] = {}
    for rule in RULES:
        for risk, view, operation in rule.check(views, chip_of(chip)):
            line = view.lines.get(operation.name, "")
            key = rule.name, line or operation.kind
            if key in findings:
                findings[key] = replace(findings[key], count=findings[key].count + 1)
                continue
            place = view.function, operation.name, operation.kind
            findings[key] = Finding(rule.name, risk, rule.source, package, *place, line)
    return list(findings.values())


__all__ = ["Finding", "View", "inspect", "inspect_program"]
