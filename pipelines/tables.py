"""The table at the end of a build: for each device its size, accuracies, retention, parity and gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.gates import describe, is_finite
from pipelines.summary import Summary


def summary_lines(summary: Summary) -> Iterator[str]:
    """Yield what stages say of their results, under the names of their nodes."""
    for node in summary.nodes:
        if node.summary:
            yield node.name
            yield from (f"  {line}".rstrip() for line in node.summary.splitlines())


def device_table(
    device: str | None, metrics: Mapping[str, Any], gates: list[dict[str, Any]], bundle: str | None
) -> Iterator[str]:
    """Yield the lines for one device, or for none. metrics: what its gates file holds; missing parts are left out."""
    size = f"  {mebibytes(size_of(metrics))}" if size_of(metrics) else ""
    yield f"{device}{size}  {bundle or 'no bundle'}" if device else "no device"
    tasks = tasks_of(metrics)
    if tasks:
        yield f"  {'task':<14}{'n':>6}{'fp32':>9}{'artifact':>10}{'retention':>11}  95 % interval"
    for name, task in tasks.items():
        low, high = percent(task.get("retention_low")), percent(task.get("retention_high"))
        yield (
            f"  {name:<14}{task.get('n', '')!s:>6}{percent(task.get('fp32')):>9}{percent(task.get('artifact')):>10}"
            f"{percent(task.get('retention')):>11}  [{low}, {high}]"
        )
    parity = mapping(metrics, "parity")
    if parity:
        yield "  parity        " + ", ".join(f"{name} {number(value)}" for name, value in parity.items())
    if predicted := mapping(metrics, "predicted"):
        yield "  predicted     " + ", ".join(f"{name} {value:.3g}" for name, value in predicted.items())
    if metrics.get("risks"):
        yield f"  risks         {metrics['risks']} found by static rules; 'tapeout report' lists them"
    failed = [gate for gate in gates if not gate["passed"]]
    yield f"  gates         {len(gates) - len(failed)} of {len(gates)} passed"
    yield from (f"    FAILED      {describe(gate)}" for gate in failed)


def sweep_table(runs: list[tuple[str, Summary]]) -> Iterator[str]:
    """Yield the lines that compare the runs of a sweep: a row for each run and device. runs: (overrides, summary)."""
    rows = [("configuration", "device", "size", "lowest retention", "gates")]
    for name, summary in runs:
        for device in summary.judged:
            metrics = summary.metrics.get(device or "", {})
            kept = [task["retention"] for task in tasks_of(metrics).values() if is_finite(task.get("retention"))]
            gates = [gate["passed"] for gate in summary.gates if gate["device"] == device]
            size = mebibytes(size_of(metrics)) if size_of(metrics) else "-"
            rows.append(
                (name, device or "", size, percent(min(kept, default=None)), f"{sum(gates)} of {len(gates)} passed")
            )
        failed = [node.name for node in summary.nodes if node.status == "failed"]
        if failed or not summary.judged:
            rows.append((name, "", "", "", f"{', '.join(failed)} failed" if failed else "done"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def mapping(metrics: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of the metrics; a stage may leave it out, or call something else so."""
    value = metrics.get(key)
    return value if isinstance(value, Mapping) else {}


def tasks_of(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return {task: its figures}."""
    return {name: task for name, task in mapping(metrics, "tasks").items() if isinstance(task, Mapping)}


def size_of(metrics: Mapping[str, Any]) -> float:
    """Return the artifact's bytes, or 0 where they are not told."""
    value = metrics.get("size_bytes")
    return float(value) if isinstance(value, int | float) and is_finite(value) else 0.0


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.2f} MiB"


def percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if is_finite(value) else "-"


def number(value: Any) -> str:
    """Return a share as a percentage, a count as it is."""
    return f"{100 * value:.2f} %" if isinstance(value, float) and 0 <= value <= 1 else str(value)
