"""The SDK for the web in a real browser: Debian's Chromium, headless, driven by Playwright.

Skipped with a reason where there is no Chromium, no Playwright, or nothing that builds the SDK.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError, StageError
from stages.playground.sdk import built_sdk
from tests.pages import ARGUMENTS
from tests.stages.release.server import Server, serving

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "mobile" / "spec" / "vectors"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ISOLATED = {  # what a page needs for threads and exact memory figures
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH")
LONGEST = 200  # seconds of a script in a page
BLANK = "<!doctype html><html lang=en><meta charset=utf-8><title>SDK</title><link rel=icon href=data:,><main></main>"


def sdk_or_skip() -> Path:
    """Return mobile/web/dist, built where it has to be; skip where there is no Node or no registry.

    Sources that do not build, and a lock file that does not fit, are failures.
    """
    try:
        return built_sdk()
    except ConfigError as error:
        pytest.skip(f"the SDK for the web cannot be built here: {error}")
    except StageError as error:
        if not any(word in str(error) for word in UNREACHABLE):
            raise
        pytest.skip(f"the SDK's packages cannot be installed here: {error}")


@contextmanager
def chromium(*arguments: str, profile: Path | None = None) -> Iterator[Any]:
    """A browser; with `profile` a context whose storage lies in that folder, and stays."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: tests/browser.sh installs Debian's")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is among the test extras")
    with playwright.sync_playwright() as driver:
        words = [*ARGUMENTS, *arguments]
        if profile is None:
            opened = driver.chromium.launch(executable_path=CHROMIUM, args=words)
        else:
            opened = driver.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=words)
        yield opened
        opened.close()


@dataclass
class Site:
    """A web server with the SDK under /sdk/, an empty page, and whatever a test lays into its folder."""

    server: Server
    folder: Path

    @property
    def url(self) -> str:
        return self.server.url

    def bundle(self, name: str = "bundle", source: Path | None = None) -> str:
        """Copy a bundle with its sidecars to /name/, by default that of the vectors; return its URL."""
        source = source or VECTORS / "bundle"
        shutil.copytree(source, self.folder / name, dirs_exist_ok=True)
        for suffix in (".provenance.json", ".model.sig"):
            if (beside := source.with_name(source.name + suffix)).is_file():
                shutil.copyfile(beside, self.folder / f"{name}{suffix}")
        return f"{self.url}/{name}/"


@contextmanager
def site_of(folder: Path, sdk: Path, isolated: bool = True) -> Iterator[Site]:
    """Serve a new site in `folder`. isolated: with the headers that allow threads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(BLANK, encoding="utf-8")
    with serving(folder) as server:
        server.mounts["sdk"] = sdk
        server.headers = {"Cache-Control": "no-cache", **(ISOLATED if isolated else {})}
        yield Site(server, folder)


@dataclass
class Tab:
    """A page on a site. said: what its console said, and errors that nobody caught; asked: requests to elsewhere."""

    page: Any
    site: Site
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.note(request.url))
        self.page.goto(f"{self.site.url}/index.html")

    def note(self, url: str) -> None:
        if not url.startswith((self.site.url, "blob:", "data:")):
            self.asked.append(url)

    def run(self, script: str, *values: Any) -> Any:
        """Evaluate an asynchronous function's body with `sdk`, the package, and `given`, the values; return JSON.

        Fails where it takes longer than LONGEST: a promise that nobody keeps would hang the whole run.
        """
        source = f"""async (given) => {{
          const run = async () => {{ const sdk = await import('/sdk/index.js'); {script} }};
          const late = new Error("nothing came of it in {LONGEST} s");
          return Promise.race([run(), new Promise((_, reject) => setTimeout(() => reject(late), {LONGEST}e3))]);
        }}"""
        return self.page.evaluate(source, list(values))


Opener = Callable[..., Tab]
