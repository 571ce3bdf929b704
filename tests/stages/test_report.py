"""The report's page, without a browser: what it says, what it holds, and what it does not believe."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipelines.project import Project
from pipelines.report import ReportedNode, write_report
from pipelines.sealed import read_sealed, write_sealed
from stages.reporting.charts import axis_between, axis_for, axis_from_zero, names
from stages.reporting.layout import boxes_of, lay_out
from stages.reporting.markup import element, text
from stages.reporting.words import number, percent, rounded
from tests.stages.reported import make_build
from tests.stages.reported_contents import HOSTILE
from tests.stages.reported_devices import four, thirty


class Page(HTMLParser):
    """What a browser would make of the page: its elements, its text, and what is under each data-figure."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.figures: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = {name: value or "" for name, value in attrs}
        self.elements.append((tag, held))
        if tag not in ("img", "meta", "input", "br"):
            self._open.append((tag, held.get("data-figure")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self._open]
        if "script" in tags:
            self.scripts.append(data)
        elif "style" not in tags:
            self.words.append(data)
        for _, figure in self._open:
            if figure:
                self.figures[figure] = self.figures.get(figure, "") + data

    @property
    def text(self) -> str:
        return re.sub(r" (?=[.,;:])", "", " ".join(" ".join(self.words).split()))

    @property
    def data(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts[0]))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [held for name, held in self.elements if name == tag]


def page_of(project: Project) -> Page:
    return Page(write_report(project).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_build(tmp_path_factory.mktemp("made") / "four")


@pytest.fixture
def own(made: Project, tmp_path: Path) -> Project:
    """A copy of the build, which a test may change."""
    shutil.copytree(made.root, tmp_path / "own")
    return Project(tmp_path / "own")


def test_key_figures_are_those_of_the_data_and_of_the_summary(made: Project) -> None:
    page = page_of(made)
    summary = read_sealed(made.state / "last.json")
    assert summary is not None
    assert page.figures["gates"] == f"{page.data['gates']['passed']}/{page.data['gates']['all']}"
    assert page.data["gates"]["all"] == len(summary["gates"])
    assert page.data["passed"] is False and page.data["headline"] in page.text
    assert page.figures["flips"] == str(page.data["flips"]) == "16"
    for device in page.data["devices"]:
        told, name = summary["metrics"][device["name"]], device["name"]
        worst = min(told["tasks"].items(), key=lambda item: (item[1]["retention"], item[1]["retention_low"], item[0]))
        kept = {
            key: worst[1][f"retention{end}"] for key, end in (("retention", ""), ("low", "_low"), ("high", "_high"))
        }
        assert device["worst"] == {"task": worst[0], **kept}
        assert page.figures[f"{name}/worst/retention"] == f"{100 * device['worst']['retention']:.1f}"
        assert page.figures[f"{name}/size_bytes"] == f"{told['size_bytes'] / 2**20:.2f}"
        assert page.figures[f"{name}/gates"] == f"{device['gates']['passed']}/{device['gates']['all']}"
        assert device["predicted"]["first_token_ms"] == told["predicted"]["first_token_ms"]
        shown = page.figures[f"{name}/predicted/first_token_ms"]
        assert float(shown) == pytest.approx(told["predicted"]["first_token_ms"]["value"], rel=5e-3)


def test_what_fails_is_said_once_with_its_devices_by_how_much_and_what_would_help(made: Project) -> None:
    page = page_of(made)
    assert page.text.count("int8 output head: +1.2 points for 0.4 MB") == 1
    assert "retention, low end of ocr_unseen_fonts must be at least 96.0 % measured" in page.text
    assert "95.1 %, 0.9 points below: iPhone 15 Pro, iPhone 12" in page.text
    assert "first token, budget must be at most 60 ms at the interval's high end predicted" in page.text


def test_a_build_that_passes_says_so(tmp_path: Path) -> None:
    page = page_of(make_build(tmp_path / "p", blocked=False))
    assert page.data["passed"] and page.data["headline"] == "Ready: all 4 devices pass"
    assert "Every gate of every device passed." in page.text and "blocked" not in page.text.replace("blocked only", "")


def test_nothing_is_fetched_and_the_policy_knows_style_and_script(made: Project) -> None:
    source = write_report(made).read_text(encoding="utf-8")
    page = Page(source)
    for tag, held in page.elements:
        for name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            assert held.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, held)
        assert not any(name.startswith("on") or name == "style" for name in held), (tag, held)
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "object", "embed", "base"})
    assert "url(" not in source.replace("url(#hatch)", "").replace("url(#hatch-bad)", "") and "@import" not in source
    (policy,) = [held["content"] for held in page.all("meta") if held.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for code in (source.split("<style>")[1].split("</style>")[0], page.scripts[1]):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" in policy


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    project = make_build(tmp_path / "h", hostile=True)
    source = write_report(project).read_text(encoding="utf-8")
    page = Page(source)
    assert len(page.all("script")) == 2 and len(page.all("style")) == 1
    assert all(held["src"].startswith("data:image/png;base64,") for held in page.all("img"))
    assert not any(name.startswith("on") for _, held in page.elements for name in held)
    assert page.data["devices"][1]["title"] == HOSTILE[0]
    for each in (HOSTILE[0], HOSTILE[3], HOSTILE[4]):
        assert " ".join(each.split()) in page.text
    assert "\ufffd\ufffd\ufffd" in page.text and not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", source)
    overridden = [part for part in source.split("<bdi>") if "\u202e" in part]
    assert overridden and all("\u202e" in part.split("</bdi>")[0] for part in overridden if "alt=" not in part)


def test_thirty_devices_share_their_evaluations_and_images(tmp_path: Path) -> None:
    project = make_build(tmp_path / "t", thirty())
    source = write_report(project).read_text(encoding="utf-8")
    page = Page(source)
    assert len(page.data["devices"]) == 30
    images = [held["src"] for held in page.all("img")]
    assert len(images) == len(set(images)) == 16  # of the 7 that both evaluations have, each once
    assert page.text.count("KL to the original, nats a token 0.0113") == 2
    assert page.text.count("tensors that stay float, as the original's 100.0 %") == 2
    assert "13 devices: iPhone 12" in page.text and "17 devices: Galaxy S22" in page.text
    assert len(source) < 1_000_000


def test_measured_and_predicted_are_told_apart_in_words(made: Project) -> None:
    page = page_of(made)
    assert "Image encode ms predicted; 90 % interval; line: budget" in page.text
    assert "Peak memory MiB predicted; judged range; line: budget" in page.text
    assert "Size MiB measured; bound beyond the axis" in page.text
    assert "with a 90 % interval from errors" in page.text and "with a range that is a judgement" in page.text
    assert all(device["predicted"]["peak_memory_mib"]["judged"] is True for device in page.data["devices"])
    assert all("judged" not in device["predicted"]["encode_ms"] for device in page.data["devices"])
    assert re.search(r"budget 220 [\d.]+ [\d.]+–[\d.]+ 220", page.text)  # not marked: all of them are judged
    assert "Peak memory MiB, predicted; judged range" in page.text
    kinds = [held["class"] for held in page.all("rect") if held.get("class", "").startswith("bar ")]
    assert any(kind.startswith("bar predicted") for kind in kinds) and "bar measured" in kinds


def test_what_changed_since_the_build_before(made: Project) -> None:
    text = page_of(made).text
    assert "Against build 1 (release-1) of" in text and "Only then: quantize.bits=8" in text
    assert "1.53 MiB was 2.30 MiB better" in text and "95.7 % was 96.6 % worse" in text
    assert "retention, low end of ocr_unseen_fonts: fails now. iPhone 15 Pro, iPhone 12" in text
    assert "10.0 % of 90 answers changed; the score by \u221210.00 points" in text
    assert "config.bits 8 -> 4" in text and "tapeout compare 1 2" in text


def test_the_first_build_has_nothing_to_be_compared_with(own: Project) -> None:
    (own.state / "builds" / "000001.json").unlink()
    assert "There is no build before this one" in page_of(own).text


def test_the_answers_that_flipped_show_what_was_expected_before_and_after(made: Project) -> None:
    text = page_of(made).text
    assert "16 questions with another score than the original's: 13 worse on some device." in text
    assert "Core ML, ONNX Runtime: 4 devices red 0.22, worse" in text and "Core ML: 2 devices dog 0.10, worse" in text
    assert "1.00, better" in text


def test_layers_have_bits_and_errors(made: Project, own: Project) -> None:
    page = page_of(made)
    assert "55 weights, 6.45 bits a parameter over all." in page.text and "Relative error, up to 0.11" in page.text
    for path in own.artifacts.glob("build/evaluate-*/layers.json"):
        path.unlink()
    assert "No error a layer is recorded with this build." in page_of(own).text


def test_risks_are_listed_once_with_their_devices(made: Project) -> None:
    text = page_of(made).text
    assert text.count("A last axis of 24; it is padded to 32 or more, which costs memory.") == 1
    assert "Static rules found 2 risks, a row each. Times: how many operators or weights of a device's files" in text
    assert "No chip has run these files" in text


def test_what_is_gone_or_damaged_is_left_out(own: Project) -> None:
    before = page_of(own).data
    for path in own.artifacts.rglob("*.json*"):
        if path.parent != own.artifacts / "build":
            path.write_bytes(b'{"half')
    page = page_of(own)
    assert page.data["devices"][0]["gates"] == before["devices"][0]["gates"]
    shutil.rmtree(own.artifacts)
    shutil.rmtree(own.state / "builds")
    shutil.rmtree(own.state / "ledger")
    page = page_of(own)
    assert page.data["devices"][0]["size_bytes"] == before["devices"][0]["size_bytes"]
    assert "The answers that changed were not recorded." in page.text


def test_a_build_for_one_device_says_so(tmp_path: Path) -> None:
    page = page_of(make_build(tmp_path / "one", four()[3:]))
    assert page.data["headline"] == "Blocked: the device does not pass"


def test_odd_metrics_are_left_out(own: Project) -> None:
    def change(summary: dict[str, Any]) -> None:
        metrics = summary["metrics"]["pixel-8"]
        metrics |= {"tasks": {"a": 3, "b": {"retention": "x", "n": [1]}}, "parity": 3, "size_bytes": "big"}
        metrics |= {"predicted": {"encode_ms": 1.5, "token_ms": {"value": None}}, "overall": [], "by_context": {"x": 1}}

    page = page_of(changed(own, change))
    (pixel,) = [device for device in page.data["devices"] if device["name"] == "pixel-8"]
    assert pixel["size_bytes"] is None and pixel["worst"] is None
    assert pixel["predicted"] == {"encode_ms": {"value": 1.5, "low": None, "high": None}}


def test_a_judged_range_among_intervals_is_marked(own: Project) -> None:
    def change(summary: dict[str, Any]) -> None:
        predicted = summary["metrics"]["pixel-8"]["predicted"]
        predicted["first_token_ms"] |= {"value": 80.0, "low": 40.0, "high": 90.0, "judged": True}
        predicted["tokens_per_s"] |= {"value": 1.0, "low": 0.5, "high": 2.0, "judged": True}
        (gate,) = [
            each
            for each in summary["gates"]
            if (each["device"], each["metric"]) == ("pixel-8", "budget.first_token_ms")
        ]
        gate |= {"value": 90.0, "passed": False}

    text = page_of(changed(own, change)).text
    assert "First token ms predicted; 90 % interval, or a judged range; line: budget" in text
    assert "80.0 ms predicted, 40–90, judged; budget 60 80.0 40–90, judged 60" in text  # the bar's title, then its row
    assert "1.00 tokens/s 0.50–2.0, judged: Pixel 8, predicted" in text
    assert "at most 60 ms at the judged range's high end predicted 90.0 ms, 30.0 ms above: Pixel 8" in text
    assert "high end, judged 90.0 ms" in text


def ask_few(summary: dict[str, Any]) -> None:
    """Three questions of a user's folder, of two tasks, one of which the float model cannot answer."""
    text, seen = (
        {"n": n, "metric": "exact", "fp32": fp32, "artifact": fp32, "flips": 0.0, "retention": kept}
        | {"retention_low": 0.0, "retention_high": kept}
        for n, fp32, kept in ((1, 0.0, 0.0), (2, 0.5, 1.0))
    )
    for metrics in summary["metrics"].values():
        metrics["questions"] = {"source": "holiday", "count": 3, "per_task": 150, "seed": 23}
        metrics["tasks"] = {"text": text, "seen": seen}
    for gate in summary["gates"]:
        if gate["metric"] == "retention_low":
            gate |= {"task": "text", "value": 0.0, "passed": False}


def test_few_questions_of_a_folder_are_told_as_they_are(own: Project) -> None:
    page = page_of(changed(own, ask_few))
    assert "3 questions of holiday." in page.text and "a task" not in page.text and "seed" not in page.text
    assert "of 3 questions, Core ML" in page.text

    def draw(summary: dict[str, Any]) -> None:
        for metrics in summary["metrics"].values():
            metrics["questions"]["per_task"] = 2

    assert "3 questions of holiday, seed 23." in page_of(changed(own, draw)).text


def test_of_what_the_original_answers_none_nothing_is_retained(own: Project) -> None:
    page = page_of(changed(own, ask_few))
    assert all(device["worst"]["task"] == "seen" for device in page.data["devices"])
    assert page.data["worst"]["task"] == "seen" and page.figures["worst/retention"] == "100.0\u202f%"
    assert "text 1 exact 0.0 0.0 – the float model answers none" in page.text
    assert "must be at least 96.0 % measured the float model answers none: iPhone 15 Pro" in page.text

    def none(summary: dict[str, Any]) -> None:
        for metrics in summary["metrics"].values():
            del metrics["tasks"]["seen"]

    page = page_of(changed(own, none))
    assert "Worst retention – the float model answers none" in page.text and page.data["worst"] is None


def test_the_worst_retention_is_the_least_one_whatever_its_interval(own: Project) -> None:
    def change(summary: dict[str, Any]) -> None:
        for metrics in summary["metrics"].values():
            for task in metrics["tasks"].values():
                task |= {"retention": 1.0, "retention_low": 1.0}
            metrics["tasks"]["digit"] |= {"retention_low": 0.9}  # of few questions
            metrics["tasks"]["caption"] |= {"retention": 0.997, "retention_low": 0.99}
        summary["metrics"]["pixel-8"]["tasks"]["caption"] |= {"retention_low": 0.98}

    page = page_of(changed(own, change))
    assert {device["worst"]["task"] for device in page.data["devices"]} == {"caption"}
    assert page.data["worst"] | {"high": 0} == {
        **{"device": "pixel-8", "task": "caption", "retention": 0.997, "low": 0.98, "high": 0}
    }
    assert page.figures["worst/retention"] == "99.7\u202f%" and page.figures["pixel-8/worst/retention"] == "99.7"


def test_sizes_stand_beside_the_tightest_bound_on_them(own: Project) -> None:
    def change(summary: dict[str, Any]) -> None:
        for gate in summary["gates"]:
            if gate["metric"] == "budget.size_mib":
                gate["bound"] = 4096.0

    assert "1.53 of 4 " in page_of(own).text
    text = page_of(changed(own, change)).text
    assert "1.53 of 35 " in text and "4\u202f096" not in text.partition("Device sheets")[0]


def test_decoding_is_told_as_far_as_it_was_predicted(own: Project) -> None:
    def change(summary: dict[str, Any]) -> None:
        for metrics in summary["metrics"].values():
            metrics["predicted"] = {key: each for key, each in metrics["predicted"].items() if "min" not in key}

    assert "Decoding in the heat and by context" in page_of(own).text
    text = page_of(changed(own, change)).text
    assert "Decoding by context" in text and "in the heat" not in text

    def one(summary: dict[str, Any]) -> None:
        for metrics in summary["metrics"].values():
            metrics["by_context"] = {"256": metrics["by_context"]["256"]}

    assert "Decoding" not in page_of(changed(own, one)).text


def test_a_device_that_was_not_built_says_why(own: Project) -> None:
    def change(summary: dict[str, Any]) -> None:
        for node in summary["nodes"]:
            if node["name"] == "package-pixel-8":
                node |= {"status": "failed", "error": "no space <left>\nand a trace", "digest": None, "key": None}
        del summary["bundles"]["pixel-8"]

    page = page_of(changed(own, change))
    assert page.data["devices"][2]["verdict"] == "broken"
    assert "package-pixel-8 failed Pixel 8 no space <left>" in page.text


def test_a_build_without_devices_has_a_page(own: Project) -> None:
    def change(summary: dict[str, Any]) -> None:
        nodes = [{**node, "devices": []} for node in summary["nodes"] if node["name"] in ("load", "baseline")]
        summary |= {"nodes": nodes, "devices": {}, "metrics": {}, "gates": [], "bundles": {}, "passed": True}

    assert page_of(changed(own, change)).data["headline"] == "The build passed"


def changed(project: Project, change: Any) -> Project:
    summary = read_sealed(project.state / "last.json")
    assert summary is not None
    change(summary)
    write_sealed(project.state / "last.json", summary)
    return project


def nodes(needs: dict[str, list[str]]) -> Iterator[ReportedNode]:
    for name, each in needs.items():
        stage = name.partition("-")[0]
        yield ReportedNode(name, stage, None, (), "built", 1.0, None, None, 0, "", "", 0, "", (), needs=tuple(each))


def test_no_two_places_of_the_graph_meet_and_all_ways_lead_to_the_right() -> None:
    needs = {
        "load": [],
        "calibrate": ["load"],
        "baseline": ["load"],
        "quantize": ["load", "calibrate"],
        "convert-a": ["quantize"],
        "convert-b": ["quantize"],
        "evaluate-a": ["convert-a", "baseline", "quantize"],
        "evaluate-b": ["convert-b", "baseline", "quantize"],
        **{f"validate-{number}": ["evaluate-a", "baseline", "quantize"] for number in range(7)},
    }
    laid = lay_out(boxes_of(list(nodes(needs))))
    assert len(set(laid.places.values())) == len(laid.places)
    assert "validate" in laid.places and "validate-3" not in laid.places  # seven of a stage are one box
    for way in laid.ways:
        columns = [laid.places[name][0] for name in way]
        assert columns == list(range(columns[0], columns[-1] + 1))
    ends = {(way[0], way[-1]) for way in laid.ways}
    assert ("load", "quantize") not in ends and ("calibrate", "quantize") in ends  # the first follows from the second
    assert all(0 <= row <= laid.rows - 1 for _, row in laid.places.values())


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([7.0], (0, 2.5, 5, 7.5)), ([0.0], (0, 1)), ([], (0, 1)), ([3000.0, 20], (0, 1000, 2000, 3000))],
)
def test_axes_of_bars_begin_at_zero_and_end_at_a_round_number(values: list[float], ticks: tuple[float, ...]) -> None:
    assert axis_from_zero(values).ticks == pytest.approx(ticks)


def test_an_axis_is_logarithmic_where_one_value_dwarfs_the_others() -> None:
    axis = axis_for([1.0, 2.0, 3.0, 400.0])
    assert axis.logarithmic and axis.at(1.0) < axis.at(3.0) < axis.at(400.0) <= 100
    assert not axis_for([1.0, 2.0, 3.0]).logarithmic
    around = axis_between([0.99, 1.0], 4, (0.0, 1.0))
    assert around.least < 0.99 and around.most == 1.0 and all(0.98 < tick <= 1.0 for tick in around.ticks)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(0.171234), "0.171"),
        (number(1240.4), "1\u202f240"),
        (number(0), "0"),
        (number(3), "3"),
        (number(3, 9), "3"),
        (number(1350, 2), "1\u202f350"),
        (number(3.0), "3.00"),
        (number(float("nan")), "–"),
        (number(1.2e-9), "1.2e-9"),
        (rounded(60.0), "60"),
        (rounded(0.5), "0.5"),
        (percent(0.9996), "99.96\u202f%"),
        (percent(1.0), "100.0\u202f%"),
        (percent(None), "–"),
    ],
)
def test_numbers_have_the_digits_that_they_mean(shown: str, expected: str) -> None:
    assert shown == expected


def test_markup_escapes_all_that_is_not_markup() -> None:
    made = element("p", "<b>", element("i", "&"), [1, None, ["x"]], title="\"'", hidden=True, class_="a", lang=None)
    assert made == '<p title="&quot;&#x27;" hidden class="a">&lt;b&gt;<i>&amp;</i>1x</p>'
    assert text("a\x00\ud800\tb") == "a\ufffd\ufffd\tb"


def test_four_devices_are_four(made: Project) -> None:
    assert [device["name"] for device in page_of(made).data["devices"]] == [name for name, *_ in four()]


def test_ticks_have_the_digits_that_tell_them_apart() -> None:
    close = axis_between([0.97489, 0.97531], 4, (0.0, 1.0))
    assert len(set(names(close, 100))) == len(close.ticks) > 1
    assert names(axis_from_zero([3000.0])) == ["0", "1\u202f000", "2\u202f000", "3\u202f000"]
    assert axis_between([0.975, 0.9751], span=0.02).most - axis_between([0.975, 0.9751], span=0.02).least >= 0.02


def test_what_stages_say_is_shown_with_their_pictures(own: Project) -> None:
    def change(summary: dict[str, Any]) -> None:
        node = next(node for node in summary["nodes"] if node["name"] == "allocate")
        node |= {"summary": "beats <random>", "figures": [{"name": "loss.svg"}, {"name": "frontier.svg"}]}

    for name in ("loss.svg", "frontier.svg"):
        (own.artifacts / "build" / "allocate" / name).write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    page = page_of(changed(own, change))
    assert "What stages say allocate beats <random>" in page.text
    assert [held["alt"] for held in page.all("img") if held["src"].startswith("data:image/svg")] == [
        "loss.svg of allocate"
    ]
    assert {"href": "#said"} in page.all("a")
