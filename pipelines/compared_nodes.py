"""The nodes of two builds of the history whose results differ, and what went into them otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.history import Build
from pipelines.past import Past
from pipelines.reasons import changed


def node_changes(old: Past, new: Past) -> Iterator[dict[str, Any]]:
    """Yield the nodes whose results differ. Devices may share other nodes than before: each pair is told once.

    A node is held against the one that the same device had. One whose devices only one build has is told where the
    other build has neither it nor its result, under whatever name.
    """
    pairs: dict[tuple[str, str | None, str | None], list[str]] = {}
    was, now = by_stage(old.build), by_stage(new.build)
    for stage, device in {**was, **now}:
        pairs.setdefault((stage, was.get((stage, device)), now.get((stage, device))), []).append(device or "")
    paired = [{pair[place] for pair in pairs if pair[1] and pair[2]} for place in (1, 2)]
    results = [set(results_of(past)) for past in (old, new)]
    for (stage, before, after), devices in pairs.items():
        sides = [
            {"node": node, "key": past.build.nodes[node], "digest": past.digest(node)} if node else None
            for past, node in ((old, before), (new, after))
        ]
        if before and after:
            told = not same_result(*sides)  # type: ignore[arg-type]
        else:
            place = 0 if before else 1
            told = (before or after) not in paired[place] and not any(
                (stage, value) in results[1 - place] for value in known(sides[place])
            )
        if told:
            yield {
                "stage": stage,
                "devices": [device for device in devices if device],
                "before": sides[0],
                "after": sides[1],
                "why": list(reasons(old, new, before, after, stage)) if before and after else [],
            }


def same_result(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Say whether two nodes have one key, were it that neither has a result, or one digest."""
    return bool(one["key"] == other["key"] or one["digest"] == other["digest"] is not None)


def results_of(past: Past) -> Iterator[tuple[str, str]]:
    """Yield (stage, key) and (stage, digest) of all results of a build."""
    for node, key in past.build.nodes.items():
        for value in known({"key": key, "digest": past.digest(node)}):
            yield stage_of(node), value


def known(side: Mapping[str, Any] | None) -> list[str]:
    """Return what a result is known by; nothing where there is none."""
    return [value for value in (side["key"], side["digest"]) if value] if side else []


def by_stage(build: Build) -> dict[tuple[str, str | None], str]:
    """Return {(stage, device): node}; device None for a stage that is one for all devices."""
    found: dict[tuple[str, str | None], str] = {}
    for node in build.nodes:
        for device in build.devices.get(node, (None,)):
            found[stage_of(node), device] = node
    return found


def reasons(old: Past, new: Past, before: str, after: str, stage: str) -> Iterator[str]:
    """Yield what went into a node otherwise than before. A node of the past is known by what its key was made of."""
    was, now = old.record(before), new.record(after)
    for past, node, record in ((old, before, was), (new, after, now)):
        if past.build.nodes[node] is None:
            yield f"no result in build {past.build.number}"
        elif record is None:
            yield f"what it was made of in build {past.build.number} is not known any more"
    if was is None or now is None:
        return
    group = new.build.stages.get(stage, {}).get("config") or "config"
    names = {"config": group, "inputs": "input", "modules": "", "reads": "", "libraries": "library", "run": "run"}
    for part in dict.fromkeys(["config", "device", "devices", *was.ingredients, *now.ingredients]):
        one, other = was.ingredients.get(part), now.ingredients.get(part)
        if one == other:
            continue
        if part in ("config", "device", "devices"):
            title = names.get(part, part)
            yield from changed(lambda path, title=title: ".".join((title, *path)), one or {}, other or {})  # type: ignore[misc]
        elif part == "engine":
            yield "Tapeout itself changed"
        elif isinstance(one or {}, Mapping) and isinstance(other or {}, Mapping):
            yield from parts_changed(names.get(part, part), one or {}, other or {}, part == "libraries")
        else:
            yield f"{part} changed"


def parts_changed(title: str, old: Mapping[str, Any], new: Mapping[str, Any], tell: bool) -> Iterator[str]:
    """Yield what is another one in a mapping; tell: also what it was and is, which digests would not say."""
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            verb = "added" if name not in old else "removed" if name not in new else "changed"
            text = f"{old[name]} -> {new[name]}" if tell and verb == "changed" else verb
            yield f"{title} {name} {text}".lstrip()


def stage_of(node: str) -> str:
    """Return a node's stage: stages have no hyphen in their names."""
    return node.partition("-")[0]
