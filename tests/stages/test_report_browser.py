"""The report's page in a real browser: Debian's Chromium, headless, driven by Playwright.

Screenshots are kept in TAPEOUT_SCREENSHOTS, or in pytest's temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.report import write_report
from tests.pages import ARGUMENTS, CONTRAST, Stops, beyond, headings_are_right, twice
from tests.stages.reported import make_build
from tests.stages.reported_devices import thirty

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium is installed: tests/browser.sh installs Debian's", allow_module_level=True)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: it is among the test extras"
)

LOOKS = [(1280, "light"), (360, "dark")]
HEIGHTS = {1280: 900, 360: 740}
TALLEST = 6000  # px of a screenshot: Chromium cannot always take those of a whole page
Opened = Callable[..., "Tab"]


class Tab:
    """A page that was opened. said: what the browser's console said; asked: what it wanted from elsewhere."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(path.as_uri())
        self.asked = [url for url in self.asked if url != path.as_uri() and not url.startswith("data:")]

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three pages by name: four devices, thirty, and four with hostile names and answers."""
    root = tmp_path_factory.mktemp("pages")
    projects = {
        "four": make_build(root / "four"),
        "thirty": make_build(root / "thirty", thirty()),
        "hostile": make_build(root / "hostile", hostile=True),
    }
    return {name: write_report(project) for name, project in projects.items()}


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Opened]:
    contexts = []

    def open_page(name: str, width: int = 1280, scheme: str = "light", **options: Any) -> Tab:
        size = {"width": width, "height": HEIGHTS[width]}
        context = browser.new_context(viewport=size, color_scheme=scheme, **options)
        contexts.append(context)
        return Tab(context.new_page(), pages[name])

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("TAPEOUT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("name", ["four", "thirty", "hostile"])
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_it_fits_says_nothing_and_asks_for_nothing(
    opened: Opened, screenshots: Path, name: str, width: int, scheme: str
) -> None:
    tab = opened(name, width, scheme)
    assert (tab.said, tab.asked) == ([], [])
    assert tab.run("document.title").endswith("· Tapeout")
    assert tab.run("document.documentElement.scrollWidth") == width
    assert beyond(tab.page, ".scroll, nav ol, .patterns") == []
    height = tab.run("document.body.scrollHeight")
    for part, top in enumerate(range(0, height, TALLEST)):
        place = {"x": 0, "y": top, "width": width, "height": min(TALLEST, height - top)}
        path = screenshots / f"report-{name}-{width}-{scheme}-{part}.png"
        tab.page.screenshot(path=str(path), full_page=True, clip=place)
    with Image.open(screenshots / f"report-{name}-{width}-{scheme}-0.png") as picture:
        ground = picture.convert("L").getpixel((2, 2))
        assert picture.width == width and (ground > 200 if scheme == "light" else ground < 60)


def test_the_figures_that_it_shows_are_those_of_its_json(opened: Opened) -> None:
    tab = opened("thirty")
    data = json.loads(tab.run("document.getElementById('report-data').textContent"))
    shown = tab.run(
        """Object.fromEntries([...document.querySelectorAll("[data-figure]")]
        .map((each) => [each.dataset.figure, each.innerText.trim()]))"""
    )
    passing = sum(device["verdict"] == "passed" for device in data["devices"])
    expected = {"devices": f"{passing}/30", "flips": str(data["flips"])}
    expected["gates"] = f"{data['gates']['passed']}/{data['gates']['all']}"
    for device in data["devices"]:
        name = device["name"]
        expected[f"{name}/gates"] = f"{device['gates']['passed']}/{device['gates']['all']}"
        expected[f"{name}/size_bytes"] = f"{device['size_bytes'] / 2**20:.2f}"
        expected[f"{name}/worst/retention"] = f"{100 * device['worst']['retention']:.1f}"
        expected[f"{name}/risks"] = str(device["risks"])
    assert {key: shown[key] for key in expected} == expected
    predicted = {key: value for key, value in shown.items() if "/predicted/" in key}
    assert len(predicted) == 30 * 6
    for key, value in predicted.items():
        name, _, figure = key.split("/")
        told = next(device for device in data["devices"] if device["name"] == name)["predicted"][figure]
        assert float(value.replace("\u202f", "")) == pytest.approx(told["value"], rel=5e-3), key
    assert tab.page.inner_text("h1") == data["headline"]


@pytest.mark.parametrize("width", [1280, 360])
def test_tab_reaches_every_control_with_visible_focus_and_leaves_again(opened: Opened, width: int) -> None:
    tab = opened("four", width)
    stops = Stops(tab.page)
    assert stops.missed == [] and stops.unseen == []
    assert stops.first == tab.run("document.querySelector('.skip').dataset.stop")


def test_the_skip_link_leads_to_the_devices_and_a_device_to_its_sheet(opened: Opened) -> None:
    tab = opened("thirty")
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    assert tab.run("location.hash") == "#devices"
    assert not tab.run("document.getElementById('device-pixel-8').open")
    tab.page.click("#matrix a[href='#device-pixel-8']")
    tab.page.wait_for_function("document.getElementById('device-pixel-8').open")


def test_tables_scroll_in_regions_that_have_names(opened: Opened) -> None:
    tab = opened("four", 360)
    regions = tab.run(
        """[...document.querySelectorAll("*")].filter((each) =>
          ["auto", "scroll"].includes(getComputedStyle(each).overflowX) && each.scrollWidth > each.clientWidth + 1
          && each.checkVisibility() && each.matches("main *"))
        .map((each) => [each.getAttribute("role"), each.tabIndex, each.getAttribute("aria-label") || ""])"""
    )
    assert len(regions) > 5 and all(role == "region" and stop == 0 and name for role, stop, name in regions)


def test_headings_and_landmarks(opened: Opened) -> None:
    tab = opened("four")
    assert headings_are_right(tab.page)
    for landmark in ("header", "nav[aria-label]", "main", "footer"):
        assert tab.run(f"document.querySelectorAll({json.dumps(landmark)}).length") == 1
    assert tab.run("document.documentElement.lang") == "en"
    assert twice(tab.page) == []
    assert tab.run("[...document.images].every((each) => each.alt && each.naturalWidth > 0)")
    assert tab.run("[...document.querySelectorAll('tbody tr')].every((each) => each.cells.length > 0)")
    dead = tab.run(
        "[...document.querySelectorAll('a[href]')].map((each) => each.getAttribute('href'))"
        ".filter((each) => !document.getElementById(decodeURIComponent(each.slice(1))))"
    )
    assert dead == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(opened: Opened, scheme: str) -> None:
    tab = opened("four", 1280, scheme)
    tab.page.click("#unfold")
    assert tab.run(CONTRAST) == []


def test_the_filter_and_the_columns_that_sort(opened: Opened) -> None:
    tab = opened("thirty")
    rows = "[...document.querySelectorAll('#matrix tbody tr')].filter((each) => !each.hidden)"
    tab.page.fill("#filter", "ipad")
    assert tab.run(f"{rows}.map((each) => each.dataset.device)") == ["ipad-m1", "ipad-m2", "ipad-m4"]
    assert tab.page.inner_text("#shown") == "3 of 30 devices"
    tab.page.fill("#filter", "")
    tab.page.select_option("#show", "blocked")
    blocked = tab.run(f"{rows}.map((each) => each.dataset.verdict)")
    assert len(blocked) == 15 and set(blocked) == {"failed"}
    tab.page.select_option("#show", "")
    tab.page.click("#matrix th:has-text('First token') button")
    times = [float(value) for value in tab.run(f"{rows}.map((each) => each.cells[6].dataset.sort)")]
    assert times == sorted(times) and len(times) == 30
    assert tab.run("document.querySelector('#matrix [aria-sort]').getAttribute('aria-sort')") == "ascending"
    tab.page.keyboard.press("Enter")  # the button has the focus
    times = [float(value) for value in tab.run(f"{rows}.map((each) => each.cells[6].dataset.sort)")]
    assert times == sorted(times, reverse=True)


def test_without_scripts_all_is_there(opened: Opened) -> None:
    with_script, without = opened("four"), opened("four", java_script_enabled=False)
    text = "body => [...body.querySelectorAll('td, th, h1, h2, h3, dd, p')].map(each => each.textContent).join('|')"
    assert without.page.eval_on_selector("body", text) == with_script.page.eval_on_selector("body", text)
    assert without.page.is_hidden(".controls") and with_script.page.is_visible(".controls")


def test_on_paper_everything_is_unfolded(opened: Opened, screenshots: Path) -> None:
    tab = opened("four", java_script_enabled=False)
    tab.page.emulate_media(media="print")
    hidden = tab.page.eval_on_selector_all(
        "details > *", "all => all.filter(each => !each.checkVisibility()).map(each => each.outerHTML)"
    )
    assert hidden == []
    cut = tab.page.eval_on_selector_all(
        ".scroll", "all => all.filter(each => getComputedStyle(each).overflowX !== 'visible').length"
    )
    assert cut == 0 and tab.page.is_hidden("nav")
    folder = screenshots / "report-four.pdf"
    titles = tab.page.eval_on_selector_all("h1, h2", "all => all.map(each => each.textContent)")
    data = tab.page.pdf(path=str(folder), outline=True, tagged=True, prefer_css_page_size=True)
    bookmarks = {unescaped(each) for each in re.findall(rb"/Title \((.*?)(?<!\\)\)", data)}
    assert len(titles) == 13 and set(titles) <= bookmarks
    assert len(re.findall(rb"/Type /Page\b", data)) > 4


def unescaped(title: bytes) -> str:
    """A PDF's literal string as text: UTF-16 with a mark, else one byte a letter."""
    data = re.sub(rb"\\(.)", rb"\1", title)
    return data[2:].decode("utf-16-be", "replace") if data.startswith(b"\xfe\xff") else data.decode("latin-1")


def test_hostile_names_run_nothing(opened: Opened) -> None:
    tab = opened("hostile")
    assert tab.said == [] and tab.run("document.title") != "owned"
    assert tab.run("document.scripts.length") == 2
    assert tab.run("document.querySelectorAll('main style, main img:not([src^=\"data:image/png\"])').length") == 0
    tab.run("document.body.append(Object.assign(document.createElement('img'), {src: 'https://example.invalid/x'}))")
    tab.page.wait_for_timeout(100)
    assert any("Content Security Policy" in said for said in tab.said)  # the policy holds, whatever gets in
