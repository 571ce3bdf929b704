"""What every page is held to, by script: that it fits, its contrast, headings, keyboard, and stalls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
STALL = 50  # milliseconds that a page may be busy at once
FOCUSABLE = "a[href], button, input, select, summary, [tabindex='0']"

CONTRAST = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => {
    const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (each) => {
    for (; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || parent.closest("script, title, .skip") || !parent.checkVisibility()) continue;
    const style = getComputedStyle(parent), inside = parent.closest("svg");
    const color = light(parse(inside ? style.fill : style.color)), behind = light(ground(inside || parent));
    const ratio = (Math.max(color, behind) + 0.05) / (Math.min(color, behind) + 0.05);
    if (ratio < 4.5) low.push([walk.currentNode.data.slice(0, 40), ratio]);
  }
  return low;
})()"""


def beyond(page: Any, within: str = ".skip") -> list[str]:
    """Return the elements that reach over the window's sides. within: whose contents may, since they scroll."""
    leave = json.dumps(f"{within}, .skip, svg, [hidden]")
    found: list[str] = page.evaluate(
        f"""[...document.querySelectorAll("body *")].filter((each) => {{
          if (each.closest({leave})) return false;
          const box = each.getBoundingClientRect();
          return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
        }}).map((each) => each.outerHTML.slice(0, 90))"""
    )
    return found


def headings_are_right(page: Any) -> bool:
    """Whether there is one first heading, before all others, and no level is left out."""
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((each) => Number(each.tagName[1]))")
    return levels.count(1) == 1 and levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))


def twice(page: Any) -> list[str]:
    """Return the ids that several elements have."""
    found: list[str] = page.evaluate(
        """(() => { const names = [...document.querySelectorAll("[id]")].map((each) => each.id);
        return names.filter((each, place) => names.indexOf(each) !== place); })()"""
    )
    return found


@contextmanager
def traced(page: Any) -> Iterator[list[float]]:
    """Trace the browser; fill the list, at the end, with what each task of a page's main thread took.

    In milliseconds of the processor's time, greatest first: of the clock's, a task has as many as the other processes
    on the machine leave it.
    """
    busy: list[float] = []
    browser = page.context.browser
    browser.start_tracing(categories=["toplevel"])
    try:
        yield busy
    finally:
        events = json.loads(browser.stop_tracing())["traceEvents"]
        names = {(each["pid"], each["tid"]): each["args"]["name"] for each in events if each["name"] == "thread_name"}
        mains = {thread for thread, name in names.items() if name == "CrRendererMain"}
        ours = (each for each in events if (each["pid"], each["tid"]) in mains and "tdur" in each)
        busy.extend(sorted((each["tdur"] / 1000 for each in ours), reverse=True))


class Stops:
    """A walk by Tab until it begins anew, from a page on which nothing has the focus yet.

    missed: controls that it did not come to. unseen: stops without a visible ring, or outside the window. first: the
    first stop. A stop is the place of a control among all that can be seen, or what other element it is.
    """

    def __init__(self, page: Any) -> None:
        page.evaluate(
            f"""[...document.querySelectorAll("{FOCUSABLE}")].filter((each) => each.checkVisibility() && !each.disabled)
            .forEach((each, place) => {{ each.dataset.stop = place; }})"""
        )
        stops = page.evaluate("document.querySelectorAll('[data-stop]').length")
        reached: dict[str, bool] = {}
        for _ in range(2 * stops):
            page.keyboard.press("Tab")
            at = page.evaluate(
                """(() => {
                  const each = document.activeElement;
                  if (each === document.body) return null;
                  const style = getComputedStyle(each), box = each.getBoundingClientRect();
                  const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
                  const within = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
                  return [each.dataset.stop ?? each.outerHTML.slice(0, 80), ring && within];
                })()"""
            )
            if at is None or at[0] in reached:
                break
            reached[at[0]] = at[1]
        self.order = list(reached)
        self.first = self.order[0] if self.order else None
        self.missed = sorted({str(place) for place in range(stops)} - set(reached), key=int)
        self.unseen = [place for place, visible in reached.items() if not visible]
