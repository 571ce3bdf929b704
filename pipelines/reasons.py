"""What differs between what a node was made of and what it would be made of, in words: "quantize.bits 4 -> 8"."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.keys import Keys
from pipelines.plan import Node

WIDTH = 60  # characters of a value in a reason
ABSENT = object()  # unlike None, which a configuration can hold


def summed_up(found: list[str]) -> str:
    """Return differences in one line: the first, and how many more there are."""
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return found[0] + more if found else ""


def differences(keys: Keys, node: Node, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield every difference between the ingredients of two keys of `node`; parts that `new` lacks are left out.

    What the user set comes first, then what it was made from, then the code and what lies under it.
    """
    if old.get("run") != new.get("run"):
        yield f"run {old.get('run')} -> {new.get('run')}"
    for part in ("config", "device", "devices"):
        before, after = old.get(part) or {}, new.get(part) or {}
        yield from changed(lambda path, part=part: name_of(node, part, path), before, after)  # type: ignore[misc]
    for part, title in (("inputs", "input "), ("sources", ""), ("modules", ""), ("reads", "")):
        if part in new:
            before, after = old.get(part) or {}, new.get(part) or {}
            named = {name: title + label(keys, node, part, name, before) for name in (*before, *after)}
            for name in sorted(named, key=lambda name: named[name]):
                if before.get(name) != after.get(name):
                    unused = part == "modules" and name not in after and keys.sources.find(name) is not None
                    yield f"{named[name]} {'no longer imported' if unused else verb(name, before, after)}"
    yield from changed(
        lambda path: f"library {path[0]}" if path else "libraries", old.get("libraries") or {}, new["libraries"]
    )
    if old.get("engine") != new.get("engine"):
        yield "Tapeout itself changed"


def changed(name: Callable[[tuple[str, ...]], str], old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield "NAME old -> new" for each value that differs; name: what a path of keys is called."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from changed(name, old.get(key, ABSENT), new.get(key, ABSENT), (*path, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and nested(old + new):
        for place, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from changed(name, before, after, (*path, str(place)))
    elif old is ABSENT:
        yield f"{name(path)} added: {shown(new)}"
    elif new is ABSENT:
        yield f"{name(path)} removed (was {shown(old)})"
    elif old != new or type(old) is not type(new):
        yield f"{name(path)} {shown(old)} -> {shown(new)}"


def nested(values: list[Any]) -> bool:
    return any(isinstance(value, Mapping | list) for value in values)


def name_of(node: Node, part: str, path: tuple[str, ...]) -> str:
    """Return a value's name as the command line has it: "quantize.bits", "device.pixel-8.memory_mib"."""
    if part == "config":
        return ".".join((node.stage.config or "config", *path))
    if part == "devices":
        return ".".join(("device", *path))
    if path == ("",):  # what only a bundle's key has: the device that it is for
        return "the bundle's device"
    return ".".join(("device", ",".join(node.devices), *path))


def label(keys: Keys, node: Node, part: str, name: str, old: Mapping[str, Any]) -> str:
    """Return what the user calls an ingredient: the stage behind an input, the file of a module."""
    if part == "inputs":
        stage = node.stage.needs.get(name, name)
        given = node.inputs.get(name, stage)  # where the stage is skipped, another's node
        return stage if given == stage or given.startswith(f"{stage}-") else given
    if part == "sources":
        path = (node.config or {}).get(name)
        return f"{node.stage.config}.{name}: {path}" if path else f"{node.stage.config}.{name}"
    if part == "modules":
        return module_file(keys, node, name, old)
    return name


def module_file(keys: Keys, node: Node, module: str, old: Mapping[str, Any]) -> str:
    """Return a module's file as the project names it; of one that is gone, where it must have been."""
    files = keys.module_files(node)
    path = files.get(module) or keys.sources.find(module)
    if path is None:
        parts = module.split(".")
        roots = keys.project.import_roots
        root = next((root for root in roots if (root / parts[0]).exists()), roots[0])
        package = any(each.startswith(f"{module}.") for each in old) or Path(root, *parts).is_dir()
        path = Path(root, *parts, "__init__.py") if package else Path(root, *parts[:-1], f"{parts[-1]}.py")
    return keys.project.relative(path)


def verb(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return what happened to an ingredient."""
    return "added" if name not in old else "removed" if name not in new else "changed"


def shown(value: Any) -> str:
    """Return a value as YAML has it, on one line; a digest by its beginning."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
