"""The SDK for the web outside of a browser: its types, and its own tests in Node, conformance vectors among them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.mobile.web import ROOT

WEB = ROOT / "mobile" / "web"


def npm(*words: str) -> None:
    result = subprocess.run(["npm", "--silent", *words], cwd=WEB, capture_output=True, text=True)
    assert result.returncode == 0, failures(result.stdout + result.stderr)


def failures(said: str) -> str:
    """What failed, with the lines that say why; all of it where nothing is marked so."""
    parts = [part for part in re.split(r"(?m)^(?=\s*(?:not )?ok \d)", said) if part.lstrip().startswith("not ok")]
    return ("".join(parts) or said)[-4000:]


def test_the_types_are_right(sdk: Path) -> None:
    npm("run", "check")


def test_the_vectors_and_all_that_needs_no_browser(sdk: Path) -> None:
    npm("run", "test")
