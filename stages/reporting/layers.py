"""Bits and error of each weight, as it is stored: one part for each distinct quantized model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report import ReportedNode
from stages.reporting.charts import axis_from_zero, bar, columns
from stages.reporting.facts import Facts, listed, part, read_json
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import scrolling
from stages.reporting.words import ABSENT, count, is_number, kibibytes, number

MANY = 48  # rows of a table that stands open


@dataclass(frozen=True)
class Layer:
    """bits: of one of its numbers as stored, with scales. error: of the stored values; None: not known."""

    name: str
    format: str
    shape: tuple[int, ...]
    bytes: float
    bits: float | None
    error: float | None


def layers(facts: Facts) -> Html:
    """A part for each quantized model."""
    parts = [_model(facts, node) for node in facts.holders("formats.json")]
    found = [each for each in parts if each is not None]
    return element("div", found) if found else element("p", "No weight was quantized in this build.")


def read_layers(facts: Facts, node: ReportedNode) -> list[Layer]:
    """The weights of a quantized model in the order of their names; vectors, which stay floats, left out."""
    told = read_json(node, "formats.json")
    tensors = part(told, "tensors") if isinstance(told, Mapping) else {}
    errors = _errors(facts, node)
    found = []
    for name, each in tensors.items():
        shape = each.get("shape") if isinstance(each, Mapping) else None
        if not isinstance(shape, list) or len(shape) < 2 or not is_number(each.get("bytes")):
            continue
        size = 1
        for edge in shape:
            size *= edge
        error = part(errors, name).get("error")
        found.append(
            Layer(
                name=name,
                format=_format(each),
                shape=tuple(shape),
                bytes=each["bytes"],
                bits=8 * each["bytes"] / size if size else None,
                error=float(error) if is_number(error) else None,
            )
        )
    return found


def _model(facts: Facts, node: ReportedNode) -> Html | None:
    found = read_layers(facts, node)
    if not found:
        return None
    total = part(read_json(node, "formats.json"), "totals")
    titles = [facts.title(name) for name in node.devices]
    words = f"{count(len(found), 'weight')}, {number(total.get('bits_per_parameter'), 3)} bits a parameter over all"
    names = [f"{each.name}: {number(each.bits, 2)} bits, {each.format}" for each in found]
    errors = [each.error for each in found]
    known = [each for each in errors if each is not None]
    charts = [
        element("p", "Bits a parameter, up to ", number(_most(found)), class_="axis-title"),
        columns([each.bits for each in found], _most(found), 64, names, "bar measured"),
    ]
    if known:
        said = [f"{each.name}: {number(each.error, 2)}" for each in found]
        charts.append(element("p", "Relative error, up to ", number(max(known), 2), class_="axis-title"))
        charts.append(columns(errors, max(known) or 1.0, 64, said, "bar error"))
    else:
        charts.append(element("p", "No error a layer is recorded with this build.", class_="lead"))
    charts.append(element("p", element("span", found[0].name), element("span", found[-1].name), class_="ends"))
    table = _table(found, bool(known))
    return element(
        "section",
        element(
            "h3", foreign(node.name), element("small", count(len(titles), "device"), ": ", foreign(listed(titles, 6)))
        ),
        element("p", words + ".", class_="lead"),
        element("div", charts, class_="columns"),
        element(
            "details",
            element("summary", f"All {count(len(found), 'weight')}"),
            scrolling(table, f"Weights of {node.name}", "tall"),
            open=len(found) <= 8,
        ),
    )


def _table(found: Sequence[Layer], known: bool) -> Html:
    axis = axis_from_zero([each.error for each in found if each.error is not None])
    head = element(
        "tr",
        element("th", "Weight", scope="col"),
        element("th", "Format", scope="col"),
        element("th", "Shape", scope="col"),
        element("th", "Bits", scope="col", class_="number"),
        element("th", "KiB", scope="col", class_="number"),
        [
            element("th", "Error", scope="col", class_="number"),
            element("th", "", class_="track", aria_label="Error drawn", scope="col"),
        ]
        if known
        else None,
    )
    rows = [
        element(
            "tr",
            element("th", foreign(each.name), scope="row", class_="name"),
            element("td", foreign(each.format)),
            element("td", "×".join(map(str, each.shape))),
            element("td", number(each.bits), class_="number"),
            element("td", kibibytes(each.bytes), class_="number"),
            [
                element("td", number(each.error, 2) if each.error is not None else ABSENT, class_="number"),
                element("td", bar(axis, each.error) if each.error is not None else None, class_="track"),
            ]
            if known
            else None,
        )
        for each in found
    ]
    return element("table", element("thead", head), element("tbody", rows), class_="small")


def _errors(facts: Facts, node: ReportedNode) -> Mapping[str, Any]:
    """layers.json of what was evaluated of this model: {weight: {"error", ...}}; {} where none is recorded."""
    for holder in facts.holders("layers.json"):
        if set(holder.devices) & set(node.devices) or not node.devices:
            told = read_json(holder, "layers.json")
            if isinstance(told, Mapping):
                return told
    return {}


def _format(told: Mapping[str, Any]) -> str:
    kind = str(told.get("format", ""))
    if kind == "float":
        return str(told.get("dtype", "float"))
    words = f"{kind} {told.get('bits', '')}-bit"
    group = told.get("group_size")
    words += f", groups of {group}" if group else ""
    words += ", sparse" if told.get("sparse") or told.get("sparsity") else ""
    return words


def _most(found: Sequence[Layer]) -> float:
    return max((each.bits for each in found if each.bits is not None), default=1.0)
