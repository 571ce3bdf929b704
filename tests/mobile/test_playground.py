"""The playground clicked through in a real browser: Debian's Chromium, headless, driven by Playwright.

Screenshots are kept in TAPEOUT_SCREENSHOTS, or in pytest's temporary folder.
"""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.project import Project
from stages.data.asked import write_asked
from stages.data.example import Questions
from stages.data.source import question_source
from stages.playground.command import playground
from stages.playground.server import serving
from stages.playground.site import write_list
from stages.release.manifest import write_manifest
from tests.mobile.web import VECTORS, chromium
from tests.pages import CONTRAST, STALL, Stops, beyond, headings_are_right, traced, twice
from tests.stages.release.server import Fault
from tests.stages.release.server import serving as slow

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
LOOKS = [(1280, 900, "light"), (360, 740, "light"), (1280, 900, "dark"), (360, 740, "dark")]
GONE = ("ERR_CONNECTION_REFUSED", "ERR_FAILED")  # what a browser itself says of a server that is not there
OPEN = 90  # seconds
Opened = Callable[..., "Tab"]


class Tab:
    """A playground in a tab, all its bundles open or refused. said: by its console; asked: of other sites."""

    def __init__(self, page: Any, url: str, bundles: int = 1) -> None:
        self.page, self.url = page, url
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.note(request.url))
        page.goto(url)
        self.wait(
            f"document.querySelectorAll('article[data-ready], article .trouble[data-code]').length === {bundles}", OPEN
        )

    def note(self, url: str) -> None:
        if not url.startswith((self.url, f"blob:{self.url}", "data:")):
            self.asked.append(url)

    def wait(self, expression: str, seconds: float = 30) -> None:
        """Wait until an expression is true. Playwright's own way is to evaluate it in the page, which forbids that."""
        end = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < end, f"{expression}: {self.page.inner_text('main')[:1000]}"
            time.sleep(0.02)

    def when(self, condition: str, action: str) -> None:
        """Have the page itself act at once when it next changes so that a condition holds, however briefly it does."""
        self.run(
            f"""new MutationObserver((_, self) => {{ if ({condition}) {{ self.disconnect(); {action}; }} }})
            .observe(document.body, {{ subtree: true, childList: true, attributes: true, characterData: true }})"""
        )

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)

    def card(self, task: str, number: int = 0) -> tuple[int, dict[str, Any]]:
        """The place of a question of a task, and what it is."""
        questions = self.run("fetch('questions.json').then((each) => each.json())")["questions"]
        return [(place, each) for place, each in enumerate(questions) if each["task"] == task][number]

    def click(self, place: int) -> None:
        self.page.locator(".card").nth(place).click()
        self.done()

    def done(self) -> None:
        """Wait until nothing is asked any more."""
        self.page.wait_for_selector("#ask:visible:not([disabled])", timeout=30_000)

    def answers(self) -> list[str]:
        return [text.strip() for text in self.page.locator(".answer").all_inner_texts()]


@pytest.fixture(scope="module")
def browser(sdk: Path) -> Iterator[Any]:
    with chromium(*CAMERA) as opened:
        yield opened


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The vectors' bundle, and a whole one beside it that sees other colours."""
    folder = tmp_path_factory.mktemp("bundles")
    paths = [folder / "as-it-is" / "web-wasm", folder / "other-colours" / "web-wasm"]
    for path in paths:
        shutil.copytree(VECTORS / "bundle", path)
    settings = json.loads((paths[1] / "preprocessing.json").read_text())
    settings["mean"] = [0.9, 0.1, 0.4]
    (paths[1] / "preprocessing.json").write_text(json.dumps(settings))
    manifest = json.loads((paths[1] / "manifest.json").read_text())
    manifest |= {"preprocessing": settings, "self_test": []}
    write_manifest(paths[1], manifest)
    return paths


@pytest.fixture(scope="module")
def sites(sdk: Path, bundles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The static folders of one bundle and of two, as the command writes them."""
    root = tmp_path_factory.mktemp("sites")
    build(root / "built")
    for name, chosen in (("one", bundles[:1]), ("two", bundles)):
        assert (
            playground(
                [*map(str, chosen), "--out", str(root / name), "--no-serve"],
                Project(root / {"one": "built"}.get(name, "none")),
            )
            == 0
        )
    return {name: root / name for name in ("one", "two")}


def build(project: Path) -> None:
    """What a build leaves of its questions: the original was wrong once, and a device's files three times."""
    examples = question_source().by_task(7, 23)
    for name, wrong in (("baseline", (0,)), ("evaluate-web-wasm", (0, 2, 14))):
        folder = project / "artifacts" / "build" / name
        folder.mkdir(parents=True)
        with open(folder / "answers.jsonl", "w") as lines:
            for place, each in enumerate(examples):
                answer = "WRONG" if place in wrong else each.answer
                said = {"question": each.question, "answer": answer, "score": float(place not in wrong)}
                lines.write(json.dumps(said) + "\n")
    write_asked(project / "artifacts" / "build" / "baseline", Questions(examples, examples))


@pytest.fixture(scope="module")
def urls(sites: dict[str, Path]) -> Iterator[dict[str, str]]:
    with serving(sites["one"], 0) as one, serving(sites["two"], 0) as two:
        yield {"one": one.url, "two": two.url}


@pytest.fixture(scope="module")
def tabs(browser: Any, urls: dict[str, str]) -> Iterator[dict[str, Tab]]:
    """A tab of each site, which the tests that leave nothing behind share."""
    contexts = {name: browser.new_context(viewport={"width": 1280, "height": 900}) for name in urls}
    yield {name: Tab(contexts[name].new_page(), urls[name], 1 + (name == "two")) for name in urls}
    for context in contexts.values():
        context.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Opened]:
    contexts = []

    def open_tab(url: str, bundles: int = 1, **options: Any) -> Tab:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        return Tab(context.new_page(), url, bundles)

    yield open_tab
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("TAPEOUT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("name", ["one", "two"])
def test_it_fits_has_contrast_says_nothing_and_asks_for_nothing(
    tabs: dict[str, Tab], screenshots: Path, name: str
) -> None:
    tab = tabs[name]
    place, question = tab.card("caption", 2)
    tab.click(place)
    assert tab.answers()[0] == question["answers"][0]
    for width, height, scheme in LOOKS:
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        tab.run("scrollTo(0, 0)")
        assert tab.run("document.documentElement.scrollWidth") == width
        assert beyond(tab.page) == []
        assert tab.run(CONTRAST) == []
        path = screenshots / f"playground-{name}-{width}-{scheme}.png"
        tab.page.screenshot(path=str(path), full_page=True)
        with Image.open(path) as picture:
            ground = picture.convert("L").getpixel((2, 2))
            assert picture.width == width and (ground > 200 if scheme == "light" else ground < 60)
    tab.page.set_viewport_size({"width": 1280, "height": 900})
    tab.page.emulate_media(color_scheme="light")
    assert (tab.said, tab.asked) == ([], [])


def test_labels_roles_and_headings(tabs: dict[str, Tab]) -> None:
    tab = tabs["two"]
    assert headings_are_right(tab.page) and twice(tab.page) == []
    for landmark in ("header", "main", "footer", "h1"):
        assert tab.run(f"document.querySelectorAll('body {landmark}').length") == 1
    assert tab.run("document.documentElement.lang") == "en"
    nameless = tab.run(
        """[...document.querySelectorAll("button, input, select, progress, article, section, ul[aria-label]")]
        .filter((each) => each.checkVisibility() && !(each.getAttribute("aria-label") || each.innerText.trim()
          || each.labels?.length || each.getAttribute("aria-labelledby"))).map((each) => each.outerHTML)"""
    )
    assert nameless == ['<section class="set" id="set">'] or nameless == []
    assert tab.run("[...document.images].every((each) => each.hasAttribute('alt'))")
    assert tab.page.get_attribute("#told", "aria-live") == "polite"
    assert tab.run("document.querySelectorAll('.answer[aria-live], .answer [aria-live]').length") == 0
    tab.page.get_by_role("textbox", name="Question").wait_for()
    tab.page.get_by_role("button", name="Ask", exact=True).wait_for()


@pytest.mark.parametrize("width", [1280, pytest.param(360, marks=pytest.mark.slow)])
def test_the_keyboard_reaches_everything_and_asks(opened: Opened, urls: dict[str, str], width: int) -> None:
    tab = opened(urls["one"], viewport={"width": width, "height": 800})
    stops = Stops(tab.page)
    assert stops.missed == [] and stops.unseen == []
    assert stops.first == tab.run("document.querySelector('.skip').dataset.stop")
    numbers = [int(place) for place in stops.order if place.isdigit()]
    assert numbers == sorted(numbers)  # in the order of the page
    tab.page.reload()
    tab.wait("document.querySelector('article[data-ready]') !== null", OPEN)
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    assert tab.run("document.activeElement.id") == "question"
    place, question = tab.card("ocr")
    assert tab.page.input_value("#question") == question["question"] and place == 0
    tab.page.keyboard.press("Enter")
    tab.wait("document.querySelector('.verdict').innerText.includes('right')")
    assert tab.answers() == question["answers"]
    assert tab.run("document.activeElement.id") == "question"
    tab.wait(f"document.getElementById('told').innerText === {json.dumps(question['answers'][0])}")


def test_the_questions_are_clicked_through(tabs: dict[str, Tab]) -> None:
    tab = tabs["one"]
    place, question = tab.card("color", 1)
    tab.click(place)
    assert tab.page.input_value("#question") == question["question"]
    assert f"Question {place + 1} of 54, color. Expected: {question['answers'][0]}" in tab.page.inner_text("#expected")
    pressed = "[...document.querySelectorAll('.card')].findIndex((each) => each.ariaPressed === 'true')"
    assert tab.run(pressed) == place
    assert tab.answers() == question["answers"] and "right" in tab.page.inner_text(".verdict")
    tab.page.click("#next")
    tab.done()
    assert tab.run(pressed) == place + 1
    tab.page.click("#previous")
    tab.done()
    assert tab.run(pressed) == place
    tab.page.select_option("#task", "count")
    visible = "[...document.querySelectorAll('.card')].filter((each) => each.checkVisibility()).length"
    assert tab.run(visible) == 6
    tab.page.click("#next")
    tab.done()
    assert ", count." in tab.page.inner_text("#expected")
    tab.page.select_option("#task", "*")  # whose answers changed in the build
    assert tab.run(visible) == 2
    tab.page.select_option("#task", "")
    assert tab.run(visible) == 54
    assert "the last build" in tab.page.inner_text("#set-source")
    tab.click(0)
    assert "the original says WRONG" in tab.page.inner_text("#expected")


def test_all_shown_are_asked_and_counted_while_the_page_stays_free(tabs: dict[str, Tab]) -> None:
    tab = tabs["one"]
    tab.page.select_option("#task", "color")
    with traced(tab.page) as busy:
        tab.page.click("#run")
        tab.done()
    assert busy and busy[0] <= STALL
    questions = [tab.card("color", number) for number in range(6)]
    marks = {place: tab.page.locator(".card").nth(place).locator(".marks").inner_text() for place, _ in questions}
    right = sum("right" in text for text in marks.values())
    assert all(marks.values()) and right >= 5
    assert tab.page.inner_text("#score") == f"{right} of 6 right"
    assert tab.page.inner_text("#told") == f"{right} of 6 right"
    tab.page.select_option("#task", "")


def test_stop_ends_a_run_and_an_answer(tabs: dict[str, Tab]) -> None:
    tab = tabs["one"]
    stop, form = "document.getElementById('stop')", "document.getElementById('form')"
    answered = "document.querySelectorAll('.mark:not(:empty)').length"
    tab.when(f"{answered} >= 2", f"window.seen = {stop}.checkVisibility(); {stop}.click()")
    tab.page.click("#run")
    tab.done()
    assert 2 <= tab.run(answered) <= 3 and tab.run("window.seen")
    place, _ = tab.card("caption")
    tab.click(place)
    tab.when(f"{stop}.checkVisibility()", f"{form}.requestSubmit(); setTimeout(() => {stop}.click())")
    tab.run(f"{form}.requestSubmit()")
    tab.done()
    tab.click(place)  # and it answers as before
    assert "right" in tab.page.inner_text(".verdict")


def image_of(tab: Tab, question: dict[str, Any]) -> str:
    """A question's image, as base64."""
    source = f"fetch({json.dumps(question['image'])}).then((each) => each.arrayBuffer())"
    return str(tab.run(f"{source}.then((data) => btoa(String.fromCharCode(...new Uint8Array(data))))"))


BRING = """([way, data, type]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const held = new DataTransfer();
  held.items.add(new File([bytes], "brought.png", { type }));
  const options = { bubbles: true, cancelable: true };
  if (way === "paste") document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: held }));
  else for (const name of ["dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(name, { ...options, dataTransfer: held }));
}"""


@pytest.mark.parametrize("way", ["choose", "paste", "drop"])
def test_an_image_of_ones_own(tabs: dict[str, Tab], way: str, tmp_path: Path) -> None:
    tab = tabs["one"]
    _, question = tab.card("ocr", {"choose": 1, "paste": 2, "drop": 3}[way])
    data = image_of(tab, question)
    if way == "choose":
        (tmp_path / "mine.png").write_bytes(base64.b64decode(data))
        with tab.page.expect_file_chooser() as chooser:
            tab.page.click("#choose")
        chooser.value.set_files(tmp_path / "mine.png")
    else:
        tab.page.evaluate(BRING, [way, data, "image/png"])
    tab.wait("document.getElementById('shown').naturalWidth > 0")
    name = "mine.png" if way == "choose" else "brought.png"
    assert tab.page.inner_text("#source") == name
    assert tab.page.inner_text("#expected") == "A question of your own"
    tab.page.fill("#question", "read the word")
    tab.page.press("#question", "Enter")
    tab.wait(f"document.querySelector('.answer').innerText === {json.dumps(question['answers'][0])}")
    tab.done()
    assert tab.page.inner_text(".verdict") == ""


def test_what_is_no_image_and_what_is_no_question_are_told_in_words(tabs: dict[str, Tab]) -> None:
    tab = tabs["one"]
    tab.page.evaluate(BRING, ["drop", base64.b64encode(b"not an image").decode(), "image/png"])
    tab.page.fill("#question", "read the word")
    tab.page.click("#ask")
    tab.page.wait_for_selector(".trouble[data-code=image]")
    assert "This is not an image that can be read" in tab.page.inner_text(".trouble")
    assert "no preview" in tab.page.inner_text("#empty")
    place, question = tab.card("ocr")
    tab.click(place)
    assert tab.answers() == question["answers"] and tab.page.inner_text(".trouble") == ""
    tab.page.fill("#question", "<image> what is it?")
    tab.page.click("#ask")
    tab.page.wait_for_selector(".trouble[data-code=prompt]")
    tab.click(place)
    assert tab.said == []


def test_two_bundles_answer_one_after_the_other_and_differences_are_marked(tabs: dict[str, Tab]) -> None:
    tab = tabs["two"]
    tab.run(
        """window.together = 0; new MutationObserver(() => {
          together = Math.max(together, document.querySelectorAll("article.writing").length);
        }).observe(document.getElementById("columns"), { subtree: true, attributes: true })"""
    )
    place, _ = tab.card("caption", 2)
    tab.click(place)
    first, second = tab.answers()
    assert first and second and first != second
    for column, own, other in ((0, first, second), (1, second, first)):
        article = tab.page.locator("article").nth(column)
        marked = " ".join(article.locator("mark").all_inner_texts()).split()
        assert marked and all(word in own.split() for word in marked)
        kept = own.split()
        for word in marked:
            kept.remove(word)
        left = iter(other.split())
        assert all(word in left for word in kept), "the rest is what both said, in order"
    ratios = tab.page.locator("article").nth(1).locator(".ratio").all_inner_texts()
    assert len(ratios) == 4 and all(text.endswith("× as-it-is") for text in ratios)
    assert tab.run("together") == 1
    marks = tab.page.locator(".card").nth(place).locator(".marks").inner_text()
    assert "as-it-is right" in marks and "other-colours" in marks
    assert tab.page.inner_text("#told") == f"as-it-is: {first}. other-colours: {second}"


def test_what_is_shown_of_a_bundle(tabs: dict[str, Tab], bundles: list[Path]) -> None:
    tab = tabs["two"]
    tab.click(tab.card("ocr")[0])
    described = tab.run("fetch('site.json').then((each) => each.json())")["bundles"]
    for column, each in enumerate(described):
        article = tab.page.locator("article").nth(column)
        badges = article.locator(".badges li").all_inner_texts()
        assert f"verified {each['digest'][:8]}" in badges[0] and badges[1].startswith("WebAssembly, ")
        assert each["digest"] in (article.locator(".badges li").first.get_attribute("title") or "")
        assert each["version"] in article.locator("h3").inner_text()
        figures = article.locator("[data-figure]").evaluate_all(
            """all => Object.fromEntries(all.map((each) =>
              [each.dataset.figure, parseFloat(each.textContent.replaceAll("\u202f", ""))]))"""
        )
        assert 0 < figures["prefill"] <= figures["first_token"] < 10_000
        assert figures["tokens_per_s"] > 1 and figures["memory"] > 1 and figures["tokens"] >= 1


def test_the_camera_is_filmed_until_stop(tabs: dict[str, Tab], screenshots: Path) -> None:
    tab = tabs["two"]
    tab.page.fill("#question", "describe the image")
    tab.page.click("#filming")
    tab.wait("[...document.querySelectorAll('.state')].every((each) => each.innerText.includes('answers a second'))")
    assert tab.page.inner_text("#filming") == "Stop filming" and tab.page.is_visible("#film")
    assert all(tab.answers())
    tab.when("document.querySelector('.state').textContent === ''", "window.anew = true")
    tab.page.select_option("#rate", "5")
    tab.wait("window.anew === true")
    tab.wait("document.querySelector('.state').innerText.includes('answers a second')")
    tab.page.screenshot(path=str(screenshots / "playground-film.png"))
    tab.page.click("#stop")
    tab.done()
    assert tab.page.inner_text("#filming") == "Film" and tab.page.is_hidden("#film")
    assert tab.run("document.getElementById('film').srcObject") is None
    assert tab.run("document.getElementById('shown').naturalWidth") >= 320  # the last frame stays
    tab.page.click("#ask")
    tab.done()
    assert all(tab.answers()) and tab.page.inner_text("#trouble") == "" and tab.said == []


def test_a_second_visit_without_the_server(browser: Any, sites: dict[str, Path], screenshots: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    with serving(sites["two"], 0) as server:
        first = Tab(context.new_page(), server.url, 2)
        first.wait("document.documentElement.dataset.kept === 'true'")
        assert "opens without the server" in first.page.inner_text("#footer")
        place, question = first.card("ocr", 1)
        first.click(place)
        answers = first.answers()
        first.page.close()
    second = Tab(context.new_page(), server.url, 2)
    assert [text.strip() for text in second.page.locator(".tag.off").all_inner_texts()] == ["offline", "offline"]
    second.click(place)
    assert second.answers() == answers and answers[0] == question["answers"][0]
    assert [text for text in second.said if not any(word in text for word in GONE)] == [] and second.asked == []
    second.page.screenshot(path=str(screenshots / "playground-offline.png"))
    context.close()


@pytest.mark.slow
def test_a_new_playground_takes_the_place_of_the_one_that_was_kept(
    browser: Any, sites: dict[str, Path], tmp_path: Path
) -> None:
    """At the same address: at once where there is a server, and then without one."""
    shutil.copytree(sites["one"], tmp_path / "site")
    page = tmp_path / "site" / "index.html"
    context = browser.new_context()
    kept = "caches.keys().then((names) => names.filter((each) => each.startsWith('tapeout playground')))"
    with serving(tmp_path / "site", 0) as server:
        first = Tab(context.new_page(), server.url)
        first.wait("document.documentElement.dataset.kept === 'true'")
        (before,) = first.run(kept)
        first.page.close()
        page.write_text(page.read_text().replace("Ask about an image", "Ask once more"))
        write_list(tmp_path / "site")
        second = Tab(context.new_page(), server.url)
        assert second.page.inner_text("h1") == "Ask once more"
        second.wait(f"{kept}.then((names) => names.length === 1 && names[0] !== {json.dumps(before)})")
        second.page.close()
    third = Tab(context.new_page(), server.url)
    assert third.page.inner_text("h1") == "Ask once more"
    context.close()


def test_a_download_is_told_in_bytes(browser: Any, sites: dict[str, Path], screenshots: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    with slow(sites["one"]) as server:
        server.faults.append(Fault("decoder.onnx.data", pause=0.1, piece=1 << 15))
        page = context.new_page()
        page.goto(f"{server.url}/index.html")
        seen = set()
        while not page.query_selector("article[data-ready]"):
            value, most, words = page.evaluate(
                """(() => { const bar = document.querySelector("progress");
                return [bar.hidden ? -1 : bar.value, bar.max, document.querySelector(".state").innerText]; })()"""
            )
            if 0 < value < most and "Downloading" in words:
                if not seen:
                    page.screenshot(path=str(screenshots / "playground-download.png"))
                seen.add(value)
                assert words.endswith(" MiB") and words.startswith("Downloading, ")
            time.sleep(0.02)
        assert len(seen) > 3 and page.is_hidden("progress")
        total = sum(
            path.stat().st_size for path in (sites["one"] / "bundles" / "web-wasm").rglob("*") if path.is_file()
        )
        fetched = re.search(r"Fetched ([\d.]+) MiB in [\d.\s]+m?s\. Verified in", page.inner_text(".state"))
        assert fetched and float(fetched[1]) == pytest.approx(total / 2**20, abs=0.03)
        page.locator("summary").click()
        assert "Verified in" in page.inner_text("details")
    context.close()


def test_a_damaged_bundle_is_refused_and_tried_again(
    opened: Opened, sites: dict[str, Path], tmp_path: Path, screenshots: Path
) -> None:
    shutil.copytree(sites["two"], tmp_path / "site")
    path = tmp_path / "site" / "bundles" / "web-wasm.2" / "decoder.onnx.data"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    with serving(tmp_path / "site", 0) as server:
        tab = opened(server.url, 2)
        damaged = tab.page.locator("article").nth(1)
        assert damaged.locator(".trouble").get_attribute("data-code") == "integrity"
        assert "decoder.onnx.data" in damaged.inner_text()
        place, question = tab.card("ocr")
        tab.click(place)
        assert tab.answers() == [question["answers"][0], ""], "the other answers, and this one never does"
        assert "decoder.onnx.data" in damaged.inner_text()
        tab.page.screenshot(path=str(screenshots / "playground-damaged.png"))
        path.write_bytes(whole)
        damaged.get_by_role("button", name="Try again").click()
        tab.wait("document.querySelectorAll('article[data-ready]').length === 2", OPEN)
        tab.click(place)
        assert all(tab.answers()) and damaged.locator(".trouble").inner_text() == ""
        assert tab.said == []


def test_hostile_words_of_bundles_and_questions_are_only_words(
    opened: Opened, sites: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(sites["one"], tmp_path / "site")
    hostile = '<img src=x onerror="document.title=1"><b id=owned>'
    for name, key, members in (("site.json", "bundles", ("label", "title")), ("questions.json", "questions", ())):
        document = json.loads((tmp_path / "site" / name).read_text())
        for member in members or ("task", "question", "original"):
            document[key][0][member] = hostile
        if not members:
            document["questions"][0]["answers"] = [hostile]
        (tmp_path / "site" / name).write_text(json.dumps(document))
    with serving(tmp_path / "site", 0) as server:
        tab = opened(server.url)
        tab.click(0)
        assert hostile in tab.page.inner_text("#expected") and hostile in tab.page.inner_text("h3")
        assert tab.run("document.querySelector('#owned, img[src=x]')") is None
        assert tab.page.title() == "Playground · Tapeout" and (tab.said, tab.asked) == ([], [])


def test_a_phone_takes_a_photo(opened: Opened, urls: dict[str, str], tmp_path: Path) -> None:
    tab = opened(urls["one"], viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert tab.page.get_attribute("#camera", "capture") == "environment" and beyond(tab.page) == []
    _, question = tab.card("ocr", 4)
    (tmp_path / "photo.png").write_bytes(base64.b64decode(image_of(tab, question)))
    with tab.page.expect_file_chooser() as chooser:
        tab.page.tap("#photo")
    chooser.value.set_files(tmp_path / "photo.png")
    tab.wait("document.getElementById('source').innerText === 'photo.png'")
    tab.page.fill("#question", question["question"])
    tab.page.tap("#ask")
    tab.wait(f"document.querySelector('.answer').innerText === {json.dumps(question['answers'][0])}")


@contextmanager
def plain(folder: Path) -> Iterator[str]:
    """Python's own web server, as anybody may use it: no headers of ours."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def test_any_web_server_will_do(opened: Opened, sites: dict[str, Path]) -> None:
    with plain(sites["one"]) as url:
        tab = opened(url)
        assert tab.run("crossOriginIsolated") is False
        assert "WebAssembly, 1 thread" in tab.page.locator(".badges li").all_inner_texts()
        place, question = tab.card("ocr")
        tab.click(place)
        assert tab.answers() == question["answers"]
        assert (tab.said, tab.asked) == ([], [])
