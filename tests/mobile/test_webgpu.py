"""A bundle for WebGPU in a real browser, without a GPU: Chromium computes WebGPU in software (SwiftShader).

The reference model, rounded to 4 bits and converted as conf/device/web-webgpu.yaml says, answers there, and where its
page gets no adapter, as ONNX Runtime answers on this machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipelines.workspace import Workspace
from stages.conformance.answers import Runtime
from stages.convert import convert
from stages.load import load
from stages.quantize import quantize
from stages.release.manifest import read
from stages.schema import ModelConfig
from tests.conf import group
from tests.mobile.web import ARGUMENTS, CHROMIUM, ROOT, VECTORS, Tab, site_of
from tests.stages.release.bundles import make_bundle

GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
QUESTIONS = 6
DEVICE = "web-webgpu"

ASK = """
const { url, digest, asked, backend } = given[0];
const fallbacks = [];
const onEvent = (event) => { if (event.type === "fallback") fallbacks.push(event.reason); };
const model = await sdk.open(url, { digest, backend, onEvent });
const texts = [];
const blob = await (await fetch("/vectors/" + asked[0].image)).blob();  // one image: it is encoded once
for (const { question } of asked) texts.push((await model.ask(blob, question).result).text);
const { info } = model;
await model.close();
return { texts, fallbacks, backend: info.backend };
"""


BROKEN = """
const mapped = GPUBuffer.prototype.getMappedRange;
GPUBuffer.prototype.getMappedRange = function (...part) {
    const range = mapped.apply(this, part);
    if (range.byteLength > 1024 && this.usage & GPUBufferUsage.MAP_READ) new Uint8Array(range).fill(0);
    return range;
};
"""


@pytest.fixture(scope="module")
def tab(browser: Any, sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A page beside the vectors, in a browser with WebGPU."""
    words = [word for word in ARGUMENTS if word != "--disable-gpu"]
    other = browser.browser_type.launch(executable_path=CHROMIUM, args=[*words, *GPU])
    with closing(other), site_of(tmp_path_factory.mktemp("webgpu") / "site", sdk) as site:
        site.server.mounts["vectors"] = VECTORS
        tab = Tab(other.new_page(), site)
        if not tab.page.evaluate("async () => !!(navigator.gpu && await navigator.gpu.requestAdapter())"):
            pytest.skip("this Chromium has no WebGPU in software")
        yield tab


@pytest.fixture(scope="module")
def bundle(tab: Tab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The reference model's bundle on the page's site: "url" and "digest", "asked" and the "answers" of this machine.

    Rounded to nearest: a calibration would take a minute. It asks itself nothing when it is opened.
    """
    path, device = tmp_path_factory.mktemp("build"), group("device", DEVICE)

    def work(name: str) -> Workspace:
        (path / name).mkdir()
        return Workspace(path / name, path / "scratch" / name)

    checkpoint = load(ModelConfig(str(ROOT / "artifacts/reference"), None, None, None, None, None), work("load"))
    settings = group("quantize", "int4", method="rtn", **device.overrides["quantize"])
    model = quantize(checkpoint, settings, work("quantize"))
    converted = convert(model, group("convert", "default"), device, work("convert"))
    folder = path / "bundle"
    make_bundle(
        folder,
        DEVICE,
        weights=0,
        files={file.name: file.read_bytes() for file in converted.path.iterdir()},
        model=converted.description(),
        preprocessing=converted.read_json("preprocessing.json"),
        tokenizer="tokenizer.json",
    )
    value = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    value["device"]["execution_providers"] = device.execution_providers
    (folder / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    manifest = read(folder)
    runtime = Runtime.open(folder, manifest)
    vectors = json.loads((VECTORS / "vectors.json").read_text(encoding="utf-8"))["answers"]
    asked = [each for each in vectors if each["image"] == vectors[0]["image"]][:QUESTIONS]
    features = runtime.features(VECTORS / vectors[0]["image"])
    answers = [(runtime.answer(features, each["question"]) or {}).get("text") for each in asked]
    assert None not in answers and len(set(answers)) > QUESTIONS // 2
    return {"url": tab.site.bundle(source=folder), "digest": manifest.digest, "asked": asked, "answers": answers}


@pytest.mark.parametrize("backend", [pytest.param("webgpu", marks=pytest.mark.slow), "wasm"])
def test_answers_are_those_of_onnxruntime_on_this_machine(tab: Tab, bundle: dict[str, Any], backend: str) -> None:
    found = tab.run(ASK, {**bundle, "backend": backend})
    assert (found["texts"], found["backend"], found["fallbacks"]) == (bundle["answers"], backend, [])
    assert (tab.said, tab.asked) == ([], [])


@pytest.mark.slow
def test_where_webgpu_computes_wrongly_webassembly_answers(tab: Tab, bundle: dict[str, Any]) -> None:
    """A GPU that gives zeros for logits fails the bundle's own questions."""
    asked, folder = bundle["asked"][0], tab.site.folder / "bundle"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    content = (VECTORS / asked["image"]).read_bytes()
    (folder / "own.png").write_bytes(content)
    entry = {"path": "own.png", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"] = sorted([*manifest["files"], entry], key=lambda each: str(each["path"]))
    answer = bundle["answers"][0]
    manifest["self_test"] = [{"image": "own.png", "question": asked["question"], "answer": answer}]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()

    def broken(route: Any) -> None:
        route.fulfill(response=(response := route.fetch()), body=BROKEN + response.text())

    tab.page.route("**/worker.js", broken)
    found = tab.run(ASK, {**bundle, "digest": digest})
    assert (found["texts"], found["backend"]) == (bundle["answers"], "wasm")
    (reason,) = found["fallbacks"]
    assert f'"{answer}" where it was built' in reason
    assert (tab.said, tab.asked) == ([], [])
