"""How well the shipped files answer, beside the model that came in: each evaluation once, with who shares it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.reporting.charts import Axis, axis_between, interval, scale
from stages.reporting.facts import Evaluation, Facts, listed, part, tasks, unanswered
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import scrolling
from stages.reporting.words import ABSENT, NONE_ANSWERED, amount, count, is_number, named, number, percent, points

METRICS = {"exact": "exact", "facts": "facts", "cer": "1 − CER", "anls": "ANLS", "cider": "CIDEr"}


def accuracy(facts: Facts) -> Html:
    """A part for each evaluation."""
    if not facts.evaluations:
        return element("p", "Nothing was evaluated in this build.")
    axis = _axis(facts)
    return element("div", [_evaluation(each, axis) for each in facts.evaluations])


def _evaluation(found: Evaluation, axis: Axis | None) -> Html:
    shared = listed([device.title for device in found.devices], 8)
    said = [count(len(found.devices), "device"), ": ", foreign(shared)]
    rows = [_row(name, task, found, axis) for name, task in tasks(found.metrics).items()]
    overall = part(found.metrics, "overall")
    if overall:
        rows.append(_row("all questions", overall, found, axis, "total"))
    head = element(
        "tr",
        element("th", "Task", scope="col"),
        element("th", "n", scope="col", class_="number"),
        element("th", "Scored by", scope="col"),
        element("th", "Original", element("small", "%"), scope="col", class_="number"),
        element("th", "Shipped", element("small", "%"), scope="col", class_="number"),
        element("th", "Retention", element("small", "95 % interval; line: gate"), scope="col", class_="number"),
        element("th", scale(axis, 100) if axis else None, scope="col", class_="track", aria_label="Retention drawn"),
        element("th", "Flipped", element("small", "% of answers"), scope="col", class_="number"),
    )
    table = element("table", element("thead", head), element("tbody", rows), class_="tasks")
    return element(
        "section",
        element("h3", foreign(found.label), element("small", said)),
        element("p", _questions(found.metrics), class_="lead") if part(found.metrics, "questions") else None,
        scrolling(table, f"Tasks of {found.label}") if rows else None,
        _parity(found.metrics),
        class_="evaluation",
    )


def _row(name: str, task: Mapping[str, Any], found: Evaluation, axis: Axis | None, class_: str = "") -> Html:
    kept, low, high = (_or_none(task.get(key)) for key in ("retention", "retention_low", "retention_high"))
    gates = [gate for device in found.devices for gate in device.gates if gate.metric.startswith("retention")]
    bounds = [gate.bound for gate in gates if gate.task == name and gate.kind == "min"]
    bound = max(bounds, default=None)
    failed = any(gate.task == name and not gate.passed for gate in gates)
    words = f"{percent(kept)}, {percent(low)} to {percent(high)}" + (f"; gate {percent(bound)}" if bound else "")
    ends = f"{points(low)}–{points(high)}" if low is not None and high is not None else None
    shown = [element("b", points(kept)), element("small", ends)]
    if unanswered(task):
        kept, shown = None, [element("b", ABSENT), element("small", NONE_ANSWERED)]
    return element(
        "tr",
        element("th", foreign(name), scope="row"),
        element("td", number(task.get("n")), class_="number"),
        element("td", METRICS.get(str(task.get("metric")), foreign(task.get("metric") or ""))),
        element("td", points(task.get("fp32")), class_="number"),
        element("td", points(task.get("artifact")), class_="number"),
        element("td", shown, class_=f"number{' bad' if failed else ''}"),
        element(
            "td", interval(axis, kept, low, high, bound, words) if axis and kept is not None else None, class_="track"
        ),
        element("td", points(task.get("flips")), class_="number"),
        class_=class_ or None,
    )


def _axis(facts: Facts) -> Axis | None:
    """One axis for all evaluations, so that they can be compared."""
    values = [
        float(task[key])
        for found in facts.evaluations
        for task in tasks(found.metrics).values()
        if not unanswered(task)
        for key in ("retention", "retention_low", "retention_high")
        if is_number(task.get(key))
    ]
    values += [gate.bound for device in facts.devices for gate in device.gates if gate.metric.startswith("retention")]
    return axis_between([*values, 1.0], 3) if values else None


def _questions(metrics: Mapping[str, Any]) -> list[Any]:
    """How many, from where, and how they were drawn: where a folder has fewer of a task, all of them are asked."""
    asked = part(metrics, "questions")
    amount, per_task, source = asked.get("count"), asked.get("per_task"), asked.get("source")
    procedural = source == "procedural"
    noun = "procedural question" if procedural else "question"
    words: list[Any] = [count(int(amount), noun) if is_number(amount) else f"{noun.capitalize()}s"]
    words += [] if procedural or not source else [" of ", foreign(source)]
    drawn = [task.get("n") == per_task for task in tasks(metrics).values()] if is_number(per_task) else []
    words += [f", {per_task} a task"] if drawn and all(drawn) else []
    words += [f", seed {asked['seed']}"] if (procedural or any(drawn)) and asked.get("seed") is not None else []
    return [*words, "."]


def _parity(metrics: Mapping[str, Any]) -> Html | None:
    """What of the runtime, and of the checkpoint, reached the files: all that was measured."""
    found = [
        (named(f"{kind}.{name}"), amount(f"{kind}.{name}", value))
        for kind in ("parity", "fidelity")
        for name, value in part(metrics, kind).items()
        if is_number(value)
    ]
    if not found:
        return None
    pairs = [element("div", element("dt", foreign(name)), element("dd", shown)) for name, shown in found]
    return element("dl", pairs, class_="pairs")


def _or_none(value: Any) -> float | None:
    return float(value) if is_number(value) else None
