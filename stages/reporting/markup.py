"""HTML that cannot be broken by what it shows: text is escaped unless it is `Html` already."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = {"img", "meta", "input", "rect", "line", "circle", "path", "polygon", "br"}


class Html(str):
    """Markup, not text."""

    __slots__ = ()


Child = str | int | float | None | Iterable[Any]


def element(tag: str, *children: Child, **attributes: Any) -> Html:
    """An element. Attributes: `class_` is class, other underscores are hyphens; None and False leave one out, True
    gives it no value. Children: text, Html, or any nesting of them; None is nothing."""
    opened = "<" + tag + "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(opened + ("/>" if tag not in ("img", "meta", "input", "br") else ">"))
    return Html(f"{opened}>{join(children)}</{tag}>")


def join(children: Child) -> Html:
    """Children one after another."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str | int | float):
        return text(str(children))
    return Html("".join(join(each) for each in children))


def text(value: str) -> Html:
    """Text as markup. What no page may hold (control characters, halves of surrogate pairs) becomes U+FFFD."""
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", value), quote=True))


def foreign(value: Any) -> Html:
    """Text that somebody else wrote: its direction and its overrides of direction stay its own."""
    return element("bdi", str(value))


def _attribute(name: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{text(str(value))}"'
