"""The SDK for the web in headless Chromium, beside ONNX Runtime's own on one thread, on the same files in the same run.

What it measures, each with its bound: whether the browser answers held-out questions as Python does; the bytes of the
int4 bundle on the wire beside the float16 one; the time of a token, medians of 50 in turns with native; tasks of the
page's main thread over 50 ms while it generates; memory over 100 questions; the time to open, cold and warm.

python benchmarks/web.py artifacts/web-wasm [--float16 DIR] [--questions N] [--turns N] [--json FILE]
"""

import argparse
import base64
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stages.artifacts import DeviceModel
from stages.data.asked import encoded
from stages.data.example import Example
from stages.data.image import preprocess
from stages.data.prompt import PromptFormat
from stages.data.source import question_source
from stages.playground.sdk import built_sdk
from stages.runtimes.generate import generate
from stages.runtimes.ort import OnnxSession
from tests.mobile.web import Site, Tab, chromium, site_of

SEED = 909  # of held-out questions that no test and no build asks
TOKENS = 50
BOUNDS = {"equal": 0.99, "wire": 0.35, "decode": 0.4, "long_tasks": 0, "memory_growth": 0.02}
OPEN = """
  const options = {digest: given[1], backend: given[2], threads: given[3] ?? undefined, assets: '/sdk/',
    onEvent: (event) => (self.events ??= []).push(event)};
  const began = performance.now();
  self.model = await sdk.open(given[0], options);
  return [performance.now() - began, self.model.info];
"""
GIVE = """
  self.asked ??= [];
  for (const [image, question] of given[0])
    self.asked.push([await (await fetch(`data:image/png;base64,${image}`)).blob(), question]);
"""
ASK = """
  const [start, end] = given, results = [];
  for (let place = start; place < end; place++) {
    const [image, question] = self.asked[place % self.asked.length];
    let text = '';
    const answer = self.model.ask(image, question);
    for await (const piece of answer) text += piece;
    const {metrics, ids} = await answer.result;
    results.push({text, ids, metrics});
  }
  return results;
"""
WATCH = """
  self.tasks = [];
  new PerformanceObserver((list) => self.tasks.push(...list.getEntries().map((each) => each.duration)))
    .observe({type: 'longtask', buffered: false});
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a bundle for the web, such as artifacts/web-wasm")
    parser.add_argument("--float16", type=Path, metavar="DIR", help="the same model with quantize=none")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5, help="of browser and native, for the time of a token")
    parser.add_argument("--backend", default="wasm", choices=["wasm", "webgpu"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chromium", nargs="*", default=[], metavar="FLAG", help="more flags, without their --")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tapeout-web-") as folder:
        figures = measure(Path(folder), options)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures; times in ms."""
    native = Native(options.bundle)
    examples = held_out(options.questions)
    flags = [f"--{flag}" for flag in options.chromium]
    with site_of(root / "site", built_sdk()) as site, chromium(*flags, profile=root / "profile") as browser:
        figures: dict[str, Any] = {"bundle": native.digest}
        if options.float16:
            figures["wire_float16"] = fetched(site, browser, options.float16, "float16", options)
        figures["wire"] = fetched(site, browser, options.bundle, "bundle", options)
        tab = Tab(browser.new_page(), site)
        opening = [site.bundle("bundle", options.bundle), native.digest, options.backend, options.threads]
        figures["open_warm_ms"], figures["info"] = tab.run(OPEN, *opening)
        for start in range(0, len(examples), 10):
            tab.run(
                GIVE,
                [[base64.b64encode(encoded(each)).decode(), each.question] for each in examples[start : start + 10]],
            )
        tab.run(WATCH)
        figures |= agreement(tab, native, examples, root / "profile")
        figures |= speed(tab, native, examples, options.turns)
        figures["long_tasks_ms"] = tab.run("return self.tasks")
        figures["console"], figures["asked_elsewhere"] = tab.said, tab.asked
    return figures


class Native:
    """The bundle in ONNX Runtime on one thread, as the evaluation of a build runs it."""

    def __init__(self, bundle: Path) -> None:
        model = DeviceModel(bundle)
        self.session = OnnxSession(model)
        description = self.session.description
        self.settings = json.loads((bundle / "preprocessing.json").read_text(encoding="utf-8"))
        self.prompts = PromptFormat.open(bundle, description["image_token_id"], description["image_tokens"])
        from stages.release.bundles.contents import open_bundle

        with open_bundle(bundle) as opened:
            self.digest = opened.manifest.digest

    def answer(self, example: Example) -> list[int]:
        features = self.session.encode(preprocess(example.image, self.settings))
        ids = self.prompts.encode(example.question)
        end, most = self.prompts.end_id, self.prompts.max_new_tokens
        return generate(self.session, ids, features, end_id=end, max_new_tokens=most)

    def token_ms(self, example: Example) -> list[float]:
        """Milliseconds of each token of the answer after the first."""
        times: list[float] = []
        step = self.session.step

        def timed(*words: Any, **more: Any) -> Any:
            began = time.perf_counter()
            logits = step(*words, **more)
            times.append(1e3 * (time.perf_counter() - began))
            return logits

        self.session.step = timed  # type: ignore[method-assign]
        try:
            answer = self.answer(example)
        finally:
            self.session.step = step  # type: ignore[method-assign]
        return times[1 : len(answer)]


def held_out(count: int) -> list[Example]:
    """Procedural questions, as many of each task as it takes."""
    source = question_source()
    tasks = len({example.task for example in source.by_task(1, SEED)})
    drawn = list(source.by_task(-(-count // tasks), SEED))
    return drawn[:: max(1, len(drawn) // count)][:count]


def fetched(site: Site, browser: Any, bundle: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Open a bundle that the browser has not: bytes of bodies and milliseconds."""
    url, digest = site.bundle(name, bundle), Native(bundle).digest
    tab = Tab(browser.new_page(), site)
    tab.run("return 1")
    tab.run("await fetch('/sdk/ort-wasm-simd-threaded.wasm').then((each) => each.arrayBuffer())")
    before = len(site.server.requests)
    ms, _ = tab.run(OPEN, url, digest, options.backend, options.threads)
    paths = [each.split(" ")[0] for each in site.server.requests[before:]]
    mine = [path for path in paths if path.startswith((f"{name}/", f"{name}."))]
    total = sum(site.server.file(path).stat().st_size for path in mine if site.server.file(path).is_file())
    tab.run("await self.model.close()")
    tab.page.close()
    return {"bytes": total, "requests": len(mine), "open_ms": ms}


def agreement(tab: Tab, native: Native, examples: list[Example], profile: Path) -> dict[str, Any]:
    """Ask all questions of both; also how the browser's memory grows from the tenth answer to the hundredth."""
    results: list[dict[str, Any]] = []
    resident = []
    for start in range(0, len(examples), 10):
        results += tab.run(ASK, start, min(start + 10, len(examples)))
        resident.append(resident_mib(profile))
    equal = [
        native.prompts.decode(native.answer(example)) == result["text"]
        for example, result in zip(examples, results, strict=True)
    ]
    right = [result["text"] in example.answers for example, result in zip(examples, results, strict=True)]
    memory = [result["metrics"]["peak_memory_bytes"] for result in results]
    last = min(99, len(memory) - 1)
    return {
        "questions": len(examples),
        "equal": sum(equal) / len(equal),
        "right": sum(right) / len(right),
        "memory_mib": memory[last] / 2**20,
        "memory_growth": memory[last] / memory[min(9, last)] - 1,
        "resident_mib": resident,
        "encode_ms": statistics.median(result["metrics"]["encode_ms"] for result in results),
        "first_token_ms": statistics.median(result["metrics"]["first_token_ms"] for result in results),
    }


def resident_mib(profile: Path) -> float:
    """MiB that this browser's processes which run pages hold for themselves."""
    parents, words, resident = {}, {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, StopIteration):
            status = (process / "status").read_text(encoding="utf-8").splitlines()
            parents[process.name] = next(line for line in status if line.startswith("PPid:")).split()[1]
            resident[process.name] = int(next(line for line in status if line.startswith("RssAnon:")).split()[1])
            words[process.name] = (process / "cmdline").read_bytes().decode(errors="replace")

    def mine(name: str) -> bool:
        return f"--user-data-dir={profile}" in words.get(name, "") or (name in parents and mine(parents[name]))

    pages = [name for name, said in words.items() if "--type=renderer" in said and mine(name)]
    return sum(resident[name] for name in pages) / 1024


def speed(tab: Tab, native: Native, examples: list[Example], turns: int) -> dict[str, Any]:
    """Time tokens after the first of the same answers, TOKENS of them at least, in the browser and native in turns."""
    pairs = []
    for turn in range(turns):
        asked, tokens, place = [], 0, turn * len(examples) // turns
        while tokens < TOKENS:
            asked.append(examples[place % len(examples)])
            tokens += len(native.answer(asked[-1])) - 1
            place += 1
        results = tab.run(ASK, place - len(asked), place)
        ours = [each["metrics"]["token_ms"] for each in results for _ in range(each["metrics"]["tokens"] - 1)]
        theirs = [ms for example in asked for ms in native.token_ms(example)]
        pairs.append((statistics.median(ours), statistics.median(theirs)))
    ratios = [theirs / ours for ours, theirs in pairs]
    return {
        "token_ms": [ours for ours, _ in pairs],
        "native_token_ms": [theirs for _, theirs in pairs],
        "decode": statistics.median(ratios),
        "decode_range": [min(ratios), max(ratios)],
    }


def show(figures: dict[str, Any]) -> None:
    def line(what: str, value: str, kept: bool | None = None, bound: str = "") -> None:
        verdict = "" if kept is None else f"{bound:<12}{'kept' if kept else 'NOT KEPT'}"
        print(f"{what:<34}{value:<26}{verdict}".rstrip())

    info = figures["info"]
    line("backend", f"{info['backend']}, threads {info['threads']}")
    line(
        "equal to Python",
        f"{figures['equal']:.1%} of {figures['questions']}",
        figures["equal"] >= BOUNDS["equal"],
        ">= 99 %",
    )
    line("right", f"{figures['right']:.1%}")
    wire = figures["wire"]["bytes"]
    line("bytes on the wire", f"{wire:,} in {figures['wire']['requests']}")
    if "wire_float16" in figures:
        share = wire / figures["wire_float16"]["bytes"]
        line("  of float16's", f"{share:.3f}", share <= BOUNDS["wire"], "<= 0.35")
    ours, theirs = (statistics.median(figures[key]) for key in ("token_ms", "native_token_ms"))
    line("ms a token, native one thread", f"{ours:.3f}, {theirs:.3f}")
    low, high = figures["decode_range"]
    line(
        "  speed of native's",
        f"{figures['decode']:.2f} ({low:.2f} to {high:.2f})",
        figures["decode"] >= BOUNDS["decode"],
        ">= 0.4",
    )
    longest = max(figures["long_tasks_ms"], default=0)
    line(
        "long tasks of the page",
        f"{len(figures['long_tasks_ms'])}, {longest:.0f} ms",
        not figures["long_tasks_ms"],
        "none",
    )
    growth = figures["memory_growth"]
    line(
        "memory, 10th to 100th answer",
        f"{growth:+.2%} of {figures['memory_mib']:.0f} MiB",
        growth <= BOUNDS["memory_growth"],
        "<= 2 %",
    )
    first, *others = figures["resident_mib"]
    line("  of Chromium's pages", f"{first:.0f} MiB; {', '.join(f'{each:.0f}' for each in others)}")
    line("ms to encode, to the first token", f"{figures['encode_ms']:.1f}, {figures['first_token_ms']:.1f}")
    line("ms to open, first and second time", f"{figures['wire']['open_ms']:.0f}, {figures['open_warm_ms']:.0f}")
    line("console, other hosts", f"{len(figures['console'])}, {len(figures['asked_elsewhere'])}")


if __name__ == "__main__":
    main()
