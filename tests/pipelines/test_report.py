"""`tapeout report` of a pipeline with a page of its own: what its function is given, and what becomes of its page."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.pipelines.toy import Toy

PAGE = '''
import json


def page(build):
    """All that a page is given, as JSON."""
    nodes = {
        node.name: {
            "status": node.status,
            "needs": sorted(node.needs),
            "devices": node.devices,
            "files": sorted(each.name for each in node.folder.iterdir()) if node.folder else None,
            "libraries": sorted(node.ingredients.get("libraries", {})),
        }
        for node in build.nodes
    }
    builds = {"build": build.build and build.build.number, "before": build.before and build.before.number}
    return json.dumps({"nodes": nodes, "devices": build.devices, "title": "\\ud800", **builds})
'''


@pytest.fixture
def paged(toy: Toy) -> Toy:
    """A project whose pipeline names the function that makes its page."""
    toy.write("toystages/page.py", PAGE)
    toy.edit("conf/pipeline/main.yaml", "schemas: ", "report: toystages.page.page\nschemas: ")
    return toy


def told(toy: Toy) -> dict[str, Any]:
    result = toy.run("report")
    assert (result.status, result.out.strip()) == (0, "artifacts/report.html"), result.err
    return dict(json.loads((toy.root / "artifacts/report.html").read_bytes()))


def test_a_page_function_is_given_the_nodes_with_their_needs_artifacts_and_records(paged: Toy) -> None:
    assert paged.build().status == 0
    page = told(paged)
    assert page["devices"] == ["phone", "tablet"] and (page["build"], page["before"]) == (1, None)
    convert = page["nodes"]["convert"]
    assert (convert["needs"], convert["status"]) == (["quantize"], "built")
    assert convert["files"] and page["nodes"]["load"]["libraries"] == ["numpy"]
    assert page["nodes"]["package-phone"]["devices"] == ["phone"]
    assert "manifest.json" in page["nodes"]["package-phone"]["files"]
    assert page["title"] == "?" or page["title"] == "\ud800"  # half of a pair is no letter, and breaks no page


def test_a_second_build_knows_the_one_before(paged: Toy) -> None:
    assert paged.build().status == 0
    assert paged.build("quantize=int8").status == 0
    page = told(paged)
    assert (page["build"], page["before"]) == (2, 1)
    assert page["nodes"]["load"]["status"] == "cached" and page["nodes"]["quantize"]["status"] == "built"


def test_what_another_build_has_left_since_is_not_taken_for_the_last_one(paged: Toy) -> None:
    assert paged.build().status == 0
    last = (paged.root / ".tapeout/last.json").read_bytes()
    assert paged.build("quantize=int8").status == 0
    (paged.root / ".tapeout/last.json").write_bytes(last)
    page = told(paged)
    assert page["build"] == 1 and page["nodes"]["load"]["files"]
    assert page["nodes"]["quantize"]["files"] is None and page["nodes"]["quantize"]["libraries"] == []


def test_a_page_function_that_is_not_there_is_named_with_its_neighbours(paged: Toy) -> None:
    assert paged.build().status == 0
    paged.edit("toystages/page.py", "def page(", "def pages(")
    result = paged.run("report")
    assert result.status == 2
    assert "report: toystages.page.page: module toystages.page has no page" in result.err and "pages" in result.err


def test_a_report_that_is_no_name_is_refused_at_plan_time(toy: Toy) -> None:
    result = toy.run("plan", "+pipeline.report=nowhere")
    assert result.status == 2
    assert "report is 'nowhere', and must be package.module.function" in result.err


def test_the_page_of_a_build_with_a_failed_node(paged: Toy) -> None:
    paged.edit("toystages/validate.py", "def validate(", "def validate_(")
    paged.edit(
        "toystages/validate.py",
        "def validate_(",
        "def validate(*anything, **else_):\n    raise OSError('x')\n\n\ndef validate_(",
    )
    assert paged.build().status == 1
    page = told(paged)
    assert page["nodes"]["validate"]["status"] == "failed" and page["nodes"]["validate"]["files"] is None
