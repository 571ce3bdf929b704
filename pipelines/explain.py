"""Why a node runs: what differs between what it was made of and what it would be made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.checkout import Checkout
from pipelines.ledger import Record
from pipelines.plan import Node


def reason(old: Record | None, new: Mapping[str, Any]) -> str:
    """Return the difference in one line, or "" where there is none."""
    if old is None:
        return "not built before"
    found = list(differences(old.ingredients, new))
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return found[0] + more if found else ""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield every difference between the ingredients of two keys, in words."""
    for part in ("run", "config", "device"):
        yield from changed(part, old.get(part), new.get(part))
    names = {
        "inputs": "input {} changed",
        "sources": "{}: its contents changed",
        "modules": "module {} changed",
        "reads": "{} changed",
    }
    for part, text in names.items():
        before, after = old.get(part) or {}, new.get(part) or {}
        yield from (text.format(name) for name in sorted({*before, *after}) if before.get(name) != after.get(name))
    yield from changed("library", old.get("libraries"), new.get("libraries"))
    if old.get("engine") != new.get("engine"):
        yield "Tapeout itself changed"


def changed(name: str, old: Any, new: Any) -> Iterator[str]:
    """Yield "name.key old -> new" for each difference between two values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from changed(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield f"{name} {old} -> {new}"


def account(checkout: Checkout, node: Node, ingredients: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of `tapeout explain`: what the node is made of, and what changed since the last build."""
    old = checkout.last(node)
    yield f"{node.name}: {node.stage.run}"
    for part in ("inputs", "config", "device", "sources", "libraries", "modules", "reads"):
        for key, value in (ingredients.get(part) or {}).items():
            before = ((old.ingredients.get(part) if old else None) or {}).get(key)
            mark = "" if old is None or before == value else f"   (was {shortened(before)})"
            yield f"  {part:<10} {key:<32} {shortened(value)}{mark}"


def shortened(value: Any) -> str:
    """Return a value on one line; a digest by its beginning."""
    text = str(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
