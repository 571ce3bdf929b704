"""A toy project whose stage `search` maps, and what the tests ask of it."""

from pathlib import Path
from typing import Any

from tests.pipelines.toy import Toy, make_toy

PIPELINE = """
schemas: toystages.schema.SCHEMAS
stages:
  load: {run: toystages.load.load, config: model, sources: {path: ["*.txt"]}}
  search:
    run: toystages.search.search
    config: search
    needs: {checkpoint: load}
    devices: true
    device_fields: [name]
    calls: [toystages.score.score]
"""
SEARCH = """
import json

from toystages.folder import Folder


def search(checkpoint: Folder, config, devices, work):
    items = [{"width": width, "seed": [1, 2]} for width in range(config.count)]
    found = {}
    for index, result in work.map("toystages.score.score", items):
        found[index] = result
        work.progress(len(found), len(items))
    assert sorted(found) == list(range(config.count))
    (work.out / "found.json").write_text(json.dumps([found[index] for index in sorted(found)]))
"""
SCORE = """
import os
import time
from pathlib import Path

from toystages.folder import Folder


def score(item, checkpoint: Folder, config, devices, work):
    began = time.monotonic()
    work.metric("width", item["width"], item["width"])
    print("scored", item["width"])
    work.progress(0, 1, "an item of its own")
    time.sleep(config.seconds)
    trace = Path(config.trace)
    trace.mkdir(exist_ok=True)
    (trace / f"{item['width']}-{os.getpid()}").write_text(f"{began} {time.monotonic()}")
    names = sorted(device.name for device in devices.values())
    return {"weights": checkpoint.text("weights.txt"), "score": item["width"] / 3, "names": names, **item}
"""


def make_mapped(root: Path) -> Toy:
    """Write the project into `root`."""
    toy = make_toy(root)
    toy.write("conf/pipeline/main.yaml", PIPELINE)
    toy.edit("conf/config.yaml", "{executor: local}", "{search: default}, {executor: local}")
    toy.write("conf/search/default.yaml", f"count: 6\nseconds: 0.0\ntrace: {root}/trace\n")
    toy.write("toystages/search.py", SEARCH)
    toy.write("toystages/score.py", SCORE)
    return toy


def spans(toy: Toy) -> dict[int, tuple[int, float, float]]:
    """{width: (process, when it began, when it ended)} of each item that ended."""
    found: dict[int, tuple[int, float, float]] = {}
    for path in (toy.root / "trace").iterdir():
        width, _, process = path.name.partition("-")
        began, ended = map(float, path.read_text().split())
        found[int(width)] = (int(process), began, ended)
    return found


def most_at_once(toy: Toy) -> int:
    """How many items ran at the same time, at most."""
    times = [(began, ended) for _, began, ended in spans(toy).values()]
    return max(sum(began <= moment < ended for began, ended in times) for moment, _ in times)


def measurements(summary: dict[str, Any]) -> list[float]:
    return sorted(each["value"] for each in summary["measurements"]["search"])
