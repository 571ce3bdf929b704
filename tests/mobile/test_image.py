"""Images in a real browser's worker, beside Pillow's: PNG to the bit, others within the tolerance of the vectors."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.data.image import preprocess, to_rgb
from tests.mobile.web import ROOT, VECTORS, Opener, Site, sdk_or_skip

WEB = ROOT / "mobile" / "web"
SAMPLES: list[dict[str, Any]] = json.loads((VECTORS / "vectors.json").read_text(encoding="utf-8"))["images"]


@pytest.fixture(scope="session")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoders alone, with a worker that runs them, in the SDK's place on the site."""
    esbuild = WEB / "node_modules" / ".bin" / "esbuild"
    if not esbuild.is_file():
        sdk_or_skip()  # installs it
    folder = tmp_path_factory.mktemp("image")
    for source, target in [("image.ts", "index.js"), ("image-worker.ts", "image-worker.js")]:
        words = [esbuild, WEB / "tests" / "pages" / source, "--bundle", "--format=esm", f"--outfile={folder / target}"]
        subprocess.run([*words, "--log-level=warning"], check=True)
    return folder


def decoded(opened: Opener, work: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decode in one worker. data becomes an array (H, W, 3), tensor one (3, S, S)."""
    answers: list[dict[str, Any]] = opened().run("return await sdk.decode(given[0])", work)
    for answer, order in zip(answers, work, strict=True):
        if "data" in answer:
            pixels = np.frombuffer(base64.b64decode(answer["data"]), np.uint8)
            answer["data"] = pixels.reshape(answer["height"], answer["width"], 3)
        if "tensor" in answer:
            size = order["settings"]["image_size"]
            answer["tensor"] = np.frombuffer(base64.b64decode(answer["tensor"]), "<f4").reshape(3, size, size)
    return answers


def furthest(one: Any, other: Any) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("form", ["blob", "bytes"])
def test_the_vectors_images(form: str, opened: Opener, site: Site) -> None:
    site.server.mounts["vectors"] = VECTORS
    work = [{"url": f"/vectors/{one['file']}", "as": form, "settings": one.get("settings")} for one in SAMPLES]
    for sample, answer in zip(SAMPLES, decoded(opened, work), strict=True):
        if "error" in sample:
            assert answer.get("error") == sample["error"], (sample["file"], answer.get("message"))
            continue
        assert "error" not in answer, (sample["file"], answer.get("message"))
        path = VECTORS / sample["file"]
        pixels = np.asarray(to_rgb(path))
        assert answer["data"].shape == pixels.shape, sample["file"]
        assert furthest(answer["data"], pixels) <= sample["tolerance"], sample["file"]
        if sample["tolerance"] == 0:
            np.testing.assert_array_equal(answer["tensor"], preprocess(path, sample["settings"])[0], sample["file"])


@pytest.mark.parametrize("form", ["data", "bitmap", "canvas", "frame"])
def test_what_a_page_holds(form: str, opened: Opener, site: Site) -> None:
    """Opaque colours pass through the browser's own forms unchanged, transparent ones but for a canvas's rounding."""
    generator = np.random.default_rng(4)
    opaque = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    clear = Image.fromarray(generator.integers(0, 256, (30, 40, 4), dtype=np.uint8))
    opaque.save(site.folder / "opaque.png")
    clear.save(site.folder / "clear.png")
    work = [{"url": f"/{name}.png", "as": form, "settings": None} for name in ("opaque", "clear")]
    first, second = decoded(opened, work)
    assert furthest(first["data"], np.asarray(opaque)) == 0
    assert furthest(second["data"], np.asarray(to_rgb(clear))) <= 2


def test_formats_that_the_browser_reads(opened: Opener, site: Site) -> None:
    gradient = np.indices((64, 80)).sum(0)[..., None] * np.array([1, 1, 1]) + np.array([0, 40, 80])
    image = Image.fromarray((gradient % 256).astype(np.uint8)).quantize(64)
    image.save(site.folder / "a.gif")
    image.convert("RGB").save(site.folder / "a.bmp")
    image.convert("RGB").save(site.folder / "a.webp", lossless=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.convert("RGB").save(site.folder / "b.webp", lossless=True, exif=turned)
    names = ["a.gif", "a.bmp", "a.webp", "b.webp"]
    answers = decoded(opened, [{"url": f"/{name}", "as": "blob", "settings": None} for name in names])
    for name, answer in zip(names, answers, strict=True):
        expected = np.asarray(to_rgb(site.folder / name))
        assert answer["data"].shape == expected.shape, name
        assert furthest(answer["data"], expected) == 0, name
