"""`tapeout plan` and `tapeout explain`: which nodes would run and why, and what each is made of. Nothing is run."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.checkout import Checkout
from pipelines.errors import PlanError, StoreError
from pipelines.history import History, history_of
from pipelines.ledger import Record, read_record
from pipelines.plan import Node, Plan
from pipelines.project import Project
from pipelines.reasons import differences, label, name_of, shown, summed_up
from pipelines.sharing import sharing_of

NOWHERE = "pulled or made elsewhere, or by a build that was stopped"
PARTS = ("inputs", "config", "device", "devices", "sources", "libraries", "modules", "reads")


@dataclass(frozen=True)
class Row:
    """A node as things are now. record: its result, if it is cached. ingredients: without inputs that will run."""

    node: Node
    status: str
    why: str
    ingredients: Mapping[str, Any]
    record: Record | None

    @property
    def needs(self) -> list[str]:
        """The nodes that it needs."""
        return list(dict.fromkeys(self.node.inputs.values()))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.node.name,
            "stage": self.node.stage.name,
            "devices": list(self.node.devices),
            "needs": self.needs,
            "status": self.status,
            "why": self.why,
        }


def preview(project: Project, plan: Plan) -> Iterator[Row]:
    """Yield a row for each node, "cached" or "run"."""
    checkout, history = Checkout(project, looking=True), history_of(project)
    known: dict[str, str] = {}
    for node in plan.nodes.values():
        checkout.keys.known(node)  # raises before anything is said
    for node in plan.nodes.values():
        if not all(need in known for need in node.inputs.values()):
            ingredients = checkout.keys.known(node)
            why = reason(checkout, history, node, ingredients) or may_change(plan, node, known)
            yield Row(node, "run", why, ingredients, None)
            continue
        ingredients = checkout.keys.ingredients(node, {name: known[need] for name, need in node.inputs.items()})
        found = checkout.find(node, ingredients)
        if found is not None:
            known[node.name] = found.tree.digest
            yield Row(node, "cached", "", ingredients, found)
        else:
            why = reason(checkout, history, node, ingredients) or "its result is not in the store"
            yield Row(node, "run", why, ingredients, None)
    with contextlib.suppress(OSError, StoreError):  # a project that cannot be written can still be planned
        checkout.digests.save()


def reason(checkout: Checkout, history: History, node: Node, ingredients: Mapping[str, Any]) -> str:
    """Return in one line what differs from the last build, or "" where nothing does."""
    old = before(checkout, history, node)
    if old is None:
        return "not built before"
    return summed_up(list(differences(checkout.keys, node, old.ingredients, ingredients)))


def before(checkout: Checkout, history: History, node: Node) -> Record | None:
    """Return what the node was in the last build: the workspace's record, or the newest that the history knows.

    A node that devices shared, or shared differently, was called otherwise then: `validate` was `validate-pixel-8`. And
    with one device each, `validate` was another device's: what reads its device is not held against that.
    """
    names = [node.name, node.stage.name, *(f"{node.stage.name}-{device}" for device in node.devices)]
    devices = node.devices if node.stage.per and node.stage.device else ()
    for name in dict.fromkeys(names if node.stage.per else names[:1]):
        found = read_record(checkout.project.root / f"artifacts/build/{name}.json")
        if found is not None and devices and is_others(history, name, found, devices):
            found = None
        if found is None and (key := history.key_of(name, devices)):
            found = checkout.ledger.get(key)
        if found is not None:
            return found
    return None


def is_others(history: History, name: str, record: Record, devices: tuple[str, ...]) -> bool:
    """Say whether the record of a node called `name` was made for other devices than these, by all that is known."""
    device = (record.ingredients.get("device") or {}).get("name")
    if device is not None:
        return device not in devices
    known = [
        build.devices[name] for build in history.builds if build.nodes.get(name) == record.key and name in build.devices
    ]
    return bool(known) and not any(set(each) & set(devices) for each in known)


def may_change(plan: Plan, node: Node, known: Mapping[str, str]) -> str:
    """Return which inputs of a node will run, by their stages."""
    stages = list(dict.fromkeys(plan.nodes[need].stage.name for need in node.inputs.values() if need not in known))
    return f"input{'s' if len(stages) > 1 else ''} {', '.join(stages)} may change"


def graph(plan: Plan, rows: list[Row]) -> Iterator[str]:
    """Yield the lines of `tapeout plan`: each node, whether it would run, what it needs, and why."""
    cells = [(row.node.name, row.status, f"<- {', '.join(row.needs)}" if row.needs else "", row.why) for row in rows]
    widths = [max((len(each[place]) for each in cells), default=0) for place in range(3)]
    for name, status, needs, why in cells:
        yield f"{name:<{widths[0]}}  {status:<{widths[1]}}  {needs:<{widths[2]}}  {why}".rstrip()
    counts = [f"{sum(row.status == 'run' for row in rows)} of {len(rows)} would run"]
    yield "; ".join([*counts, *sharing_of(plan).words])


@dataclass(frozen=True)
class Account:
    """What `tapeout explain` says of a node. old: what it was in the last build, or None."""

    checkout: Checkout
    history: History
    row: Row
    old: Record | None
    rows: Mapping[str, Row]

    @property
    def maker(self) -> str:
        """Which build made the result that is shown."""
        record = self.row.record or self.old
        if record is None:
            return ""
        build = self.history.maker(record.key)
        return build.title if build else NOWHERE

    @property
    def changes(self) -> list[str]:
        """Every difference from the last build, in words."""
        if self.old is None:
            return ["not built before"]
        keys, row = self.checkout.keys, self.row
        return list(differences(keys, row.node, self.old.ingredients, row.ingredients))

    @property
    def inputs(self) -> dict[str, Any]:
        """{parameter: {"node", "digest", "status"}}; digest: None where the node would run."""
        return {
            parameter: {
                "node": need,
                "digest": record.tree.digest if (record := self.rows[need].record) else None,
                "status": self.rows[need].status,
            }
            for parameter, need in self.row.node.inputs.items()
        }

    def to_json(self) -> dict[str, Any]:
        row, record = self.row, self.row.record
        return {
            **row.to_json(),
            "key": record.key if record else None,
            "digest": record.tree.digest if record else None,
            "made_by": self.maker if record else None,
            "before": {"key": self.old.key, "digest": self.old.tree.digest} if self.old else None,
            "inputs": self.inputs,
            "ingredients": dict(row.ingredients),
            "changes": self.changes,
        }

    def lines(self) -> Iterator[str]:
        """Yield the lines for the terminal."""
        row, record = self.row, self.row.record or self.old
        yield f"{row.node.name}: {row.node.stage.run}"
        yield f"  {'status':<10} {'cached' if row.record else f'would run: {row.why}'}"
        if record:
            yield f"  {'made by' if row.record else 'last made':<10} {self.maker}"
            yield f"  {'digest':<10} {record.tree.digest}"
        entries = list(self.entries())
        width = max((len(name) for _, name, _, _ in entries), default=0)
        for part, name, value, mark in entries:
            yield f"  {part:<10} {name:<{width}}  {value}{mark}".rstrip()

    def entries(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield (part, name, value, mark) for each ingredient, and for those that were there in the last build only."""
        for part in PARTS:
            now = flat(self.row.ingredients.get(part) or {})
            was = flat((self.old.ingredients.get(part) if self.old else None) or {})
            if part == "inputs":
                now = {(name,): each["digest"] or "would run" for name, each in self.inputs.items()}
            for path in (*now, *(path for path in was if path not in now)):
                mark = f"(was {shown(was[path])})" if path in was else "(was absent)"
                same = self.old is None or (path in now and path in was and now[path] == was[path])
                value = shown(now[path]) if path in now else "removed"
                yield part, self.title(part, path, was), value, "" if same else f"   {mark}"

    def title(self, part: str, path: tuple[str, ...], was: Mapping[tuple[str, ...], Any]) -> str:
        """Return what the user calls an ingredient; an input goes by its node's name."""
        node = self.row.node
        if part == "inputs" and path[0] in node.inputs:
            return node.inputs[path[0]]
        if part in ("config", "device", "devices"):
            return name_of(node, part, path)
        return label(self.checkout.keys, node, part, path[0], {each[0]: None for each in was})


def explain(project: Project, plan: Plan, name: str) -> Account:
    """Return what is to be said of the node `name`. Raises PlanError where there is none."""
    unknown = name not in plan.nodes and not plan.of_stage(name)
    if unknown and (build := history_of(project).latest()) and name in build.nodes:
        raise PlanError(
            f"no node is called '{name}' with these overrides; the last build had it with others",
            hint=shlex.join(["tapeout", "explain", name, *build.overrides]),
        )
    node, rows = plan.node(name), {}
    for row in preview(project, plan):
        rows[row.node.name] = row
        if row.node is node:
            break
    checkout, history = Checkout(project, looking=True), history_of(project)
    return Account(checkout, history, rows[name], before(checkout, history, node), rows)


def flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the values in nested mappings by their path of keys; a list that holds no mapping is one value."""
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        value = {str(place): each for place, each in enumerate(value)}
    if not isinstance(value, Mapping) or (path and not value):
        return {path: value}
    return {inner: each for key in value for inner, each in flat(value[key], (*path, key)).items()}
