"""The table at the end of a build: for each device its size, accuracies, retention, parity and gates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.gates import describe, is_finite
from pipelines.numbers import significant
from pipelines.summary import Summary

FEW = 3  # devices that have a table each
PREDICTED = ("token_ms", "first_token_ms", "encode_ms", "peak_memory_mib")


def summary_lines(summary: Summary) -> Iterator[str]:
    """Yield what stages say of their results, under the names of their nodes."""
    for node in summary.nodes:
        if node.summary:
            yield node.name
            yield from (f"  {line}".rstrip() for line in node.summary.splitlines())


def build_table(summary: Summary) -> Iterator[str]:
    """Yield a table for each device or, where there are many, one for all of which the same was measured."""
    found: dict[str, list[str | None]] = {}
    chosen = list(summary.devices)
    for device in sorted(summary.judged, key=lambda each: chosen.index(each) if each in chosen else len(chosen)):
        metrics = summary.metrics.get(device or "", {})
        same = [mapping(metrics, key) for key in ("tasks", "overall", "parity", "fidelity")]
        mark = json.dumps(same) if any(same) and len(summary.judged) > FEW else str(device)
        found.setdefault(mark, []).append(device)
    for devices in found.values():
        if len(devices) == 1:
            gates = gates_of(summary, devices[0])
            metrics = summary.metrics.get(devices[0] or "", {})
            yield from device_table(devices[0], metrics, gates, summary.bundles.get(devices[0] or ""))
        else:
            yield ", ".join(str(device) for device in devices)
            yield from measured_lines(summary.metrics[str(devices[0])])
            yield from predicted_lines(summary, [str(device) for device in devices])


def gates_of(summary: Summary, device: str | None) -> list[dict[str, Any]]:
    return [gate for gate in summary.gates if gate["device"] == device]


def device_table(
    device: str | None, metrics: Mapping[str, Any], gates: list[dict[str, Any]], bundle: str | None
) -> Iterator[str]:
    """Yield the lines for one device, or for none. metrics: what its gates file holds; missing parts are left out."""
    size = f"  {mebibytes(size_of(metrics))}" if size_of(metrics) else ""
    yield f"{device}{size}  {bundle or 'no bundle'}" if device else "no device"
    yield from measured_lines(metrics)
    if predicted := mapping(metrics, "predicted"):
        yield "  predicted     " + ", ".join(f"{name} {estimate(value)}" for name, value in predicted.items())
    if metrics.get("risks"):
        yield f"  risks         {metrics['risks']} found by static rules; 'tapeout report' lists them"
    yield f"  gates         {passed_of(gates)}"
    yield from failed_lines(gates)


def measured_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield tasks and parity."""
    tasks = tasks_of(metrics)
    width = max([12, *map(len, tasks)]) + 2
    if tasks:
        yield f"  {'task':<{width}}{'n':>6}{'fp32':>9}{'artifact':>10}{'retention':>11}  95 % interval"
    for name, task in tasks.items():
        low, high = percent(task.get("retention_low")), percent(task.get("retention_high"))
        yield (
            f"  {name:<{width}}{task.get('n', '')!s:>6}{percent(task.get('fp32')):>9}"
            f"{percent(task.get('artifact')):>10}{percent(task.get('retention')):>11}  [{low}, {high}]"
        )
    parity = mapping(metrics, "parity")
    if parity:
        yield "  parity        " + ", ".join(f"{name} {number(value)}" for name, value in parity.items())


def predicted_lines(summary: Summary, devices: list[str]) -> Iterator[str]:
    """Yield a row for each device: size, what is predicted, gates, bundle. Then what failed, once for all of which it
    is true."""
    rows = [["device", "size", *(f"{name} *" for name in PREDICTED), "gates", "bundle"]]
    failed: dict[tuple[str, ...], list[str]] = {}
    for device in devices:
        metrics, gates = summary.metrics[device], gates_of(summary, device)
        told = mapping(metrics, "predicted")
        size = mebibytes(size_of(metrics)) if size_of(metrics) else ""
        cells = [estimate(told[name]) if name in told else "" for name in PREDICTED]
        rows.append([device, size, *cells, passed_of(gates), summary.bundles.get(device, "no bundle")])
        for gate in gates:
            failed.setdefault(tuple(failed_lines([gate])), []).append(device)
    kept = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    widths = {place: max(len(row[place]) for row in rows) for place in kept}
    for row in rows:
        yield "  " + "  ".join(row[place].ljust(widths[place]) for place in kept).rstrip()
    if any(rows[0][place].endswith("*") for place in kept):
        yield "  * predicted, not measured, with its interval"
    for (said, *helps), names in [(lines, names) for lines, names in failed.items() if lines]:
        yield f"{said}  ({', '.join(names)})"
        yield from helps


def passed_of(gates: list[dict[str, Any]]) -> str:
    return f"{sum(gate['passed'] for gate in gates)} of {len(gates)} passed"


def failed_lines(gates: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the gates that failed, and what would help."""
    for gate in gates:
        if not gate["passed"]:
            yield f"    FAILED      {describe(gate)}"
            yield from (f"                {line}" for line in gate.get("help") or ())


def estimate(value: Any) -> str:
    """Return a prediction, with its interval where it has one."""
    if isinstance(value, Mapping) and all(is_finite(value.get(key)) for key in ("value", "low", "high")):
        middle, low, high = (significant(value[key], 3) for key in ("value", "low", "high"))
        return f"{middle} [{low}, {high}]"
    return significant(value, 3) if is_finite(value) else "-"


def sweep_table(runs: list[tuple[str, Summary]]) -> Iterator[str]:
    """Yield the lines that compare the runs of a sweep: a row for each run and device. runs: (overrides, summary)."""
    rows = [("configuration", "device", "size", "lowest retention", "gates")]
    for name, summary in runs:
        for device in summary.judged:
            metrics = summary.metrics.get(device or "", {})
            kept = [task["retention"] for task in tasks_of(metrics).values() if is_finite(task.get("retention"))]
            size = mebibytes(size_of(metrics)) if size_of(metrics) else "-"
            passed = passed_of(gates_of(summary, device))
            rows.append((name, device or "", size, percent(min(kept, default=None)), passed))
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
