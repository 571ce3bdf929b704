"""The table at the end of a build: for each device its size, accuracies, retention, parity and gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.gates import describe


def device_table(
    device: str, metrics: Mapping[str, Any], gates: list[dict[str, Any]], bundle: str | None
) -> Iterator[str]:
    """Yield the lines for one device. metrics: what its gates file holds; missing parts are left out."""
    size = f"  {mebibytes(metrics['size_bytes'])}" if metrics.get("size_bytes") else ""
    yield f"{device}{size}  {bundle or 'no bundle'}"
    tasks = metrics.get("tasks") or {}
    if tasks:
        yield f"  {'task':<14}{'n':>6}{'fp32':>9}{'artifact':>10}{'retention':>11}  95 % interval"
    for name, task in tasks.items():
        low, high = percent(task.get("retention_low")), percent(task.get("retention_high"))
        yield (
            f"  {name:<14}{task.get('n', ''):>6}{percent(task.get('fp32')):>9}{percent(task.get('artifact')):>10}"
            f"{percent(task.get('retention')):>11}  [{low}, {high}]"
        )
    parity = metrics.get("parity") or {}
    if parity:
        yield "  parity        " + ", ".join(f"{name} {number(value)}" for name, value in parity.items())
    failed = [gate for gate in gates if not gate["passed"]]
    yield f"  gates         {len(gates) - len(failed)} of {len(gates)} passed"
    yield from (f"    FAILED      {describe(gate)}" for gate in failed)


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.2f} MiB"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def number(value: Any) -> str:
    """Return a share as a percentage, a count as it is."""
    return f"{100 * value:.2f} %" if isinstance(value, float) and 0 <= value <= 1 else str(value)
